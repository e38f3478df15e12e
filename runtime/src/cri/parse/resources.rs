//! LinuxContainerResources -> Resources.

use std::collections::{BTreeMap, HashMap};

use berth_proto::cri;

use super::field;
use crate::pod::Result;
use crate::pod::spec::Resources;

/// Limits below the field `path`.
pub(in crate::cri) fn parse(
    path: &str,
    limits: &cri::LinuxContainerResources,
) -> Result<Resources> {
    let field = |name: &str| format!("{path}.{name}");
    Ok(Resources {
        cpu_period: unsigned(&field("cpu_period"), limits.cpu_period)?,
        cpu_quota: limit(&field("cpu_quota"), limits.cpu_quota)?,
        cpu_shares: unsigned(&field("cpu_shares"), limits.cpu_shares)?,
        memory_limit: limit(&field("memory_limit_in_bytes"), limits.memory_limit_in_bytes)?,
        memory_swap_limit: limit(
            &field("memory_swap_limit_in_bytes"),
            limits.memory_swap_limit_in_bytes,
        )?,
        oom_score_adj: oom_score_adj(&field("oom_score_adj"), limits.oom_score_adj)?,
        cpuset_cpus: cpuset(&field("cpuset_cpus"), &limits.cpuset_cpus)?,
        cpuset_mems: cpuset(&field("cpuset_mems"), &limits.cpuset_mems)?,
        hugepages: hugepages(&field("hugepage_limits"), &limits.hugepage_limits)?,
        unified: unified(&field("unified"), &limits.unified)?,
    })
}

fn unsigned(field: &str, value: i64) -> Result<u64> {
    u64::try_from(value).or_else(|_| field::refuse(field, value, "is negative"))
}

fn limit(field: &str, value: i64) -> Result<i64> {
    if value < -1 {
        return field::refuse(field, value, "is negative and not -1 (no limit)");
    }
    Ok(value)
}

fn oom_score_adj(field: &str, value: i64) -> Result<i32> {
    match i32::try_from(value) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(score),
        _ => field::refuse(field, value, "is not between -1000 and 1000"),
    }
}

/// A list such as `0-3,7`, see cpuset(7).
fn cpuset(field: &str, value: &str) -> Result<String> {
    let range = |part: &str| match part.split_once('-') {
        None => part.parse::<u16>().is_ok(),
        Some((first, last)) => match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => first <= last,
            _ => false,
        },
    };
    if !value.is_empty() && !value.split(',').all(range) {
        return field::refuse(field, value, "is not a list such as 0-3,7");
    }
    Ok(value.to_owned())
}

fn hugepages(field: &str, limits: &[cri::HugepageLimit]) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for (n, limit) in limits.iter().enumerate() {
        let size = limit.page_size.trim_end_matches("B");
        let number = size.trim_end_matches(['K', 'M', 'G']);
        let known = size.len() == number.len() + 1 && limit.page_size.len() == size.len() + 1;
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        if !known || !digits {
            let field = format!("{field}[{n}].page_size");
            return field::refuse(field, &limit.page_size, "is not a size such as 2MB");
        }
        sizes.insert(limit.page_size.clone(), limit.limit);
    }
    Ok(sizes)
}

/// Files of cgroup v2 and what goes into them.
fn unified(field: &str, map: &HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    for (file, text) in map {
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !file.contains('.') || !file.chars().all(letters) || file.contains("..") {
            return field::refuse(field, file, "is not the name of a cgroup file");
        }
        field::no_nul(&format!("{field}[{file:?}]"), text)?;
    }
    Ok(map.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}
