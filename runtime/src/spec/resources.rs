//! Limits.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{Input, devices};
use crate::pod::spec::Resources;

pub(super) fn build(input: &Input<'_>) -> LinuxResources {
    let asked = &input.container.resources;
    let mut resources = LinuxResources::default();
    let rules = devices::rules(&input.paths.devices, input.container.privileged);
    resources.set_devices(Some(rules));
    resources.set_memory(memory(asked, input.host.swap_accounting));
    resources.set_cpu(cpu(asked));
    resources.set_hugepage_limits(hugepages(asked));
    if !asked.unified.is_empty() {
        resources.set_unified(Some(asked.unified.clone().into_iter().collect()));
    }
    resources
}

fn memory(asked: &Resources, swap_accounting: bool) -> Option<LinuxMemory> {
    if asked.memory_limit == 0 {
        return None;
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(asked.memory_limit));
    if swap_accounting {
        // Who names no limit for swap gets none of it.
        let both = match asked.memory_swap_limit {
            0 => asked.memory_limit,
            both => both,
        };
        memory.set_swap(Some(both));
    }
    Some(memory)
}

fn cpu(asked: &Resources) -> Option<LinuxCpu> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares((asked.cpu_shares != 0).then_some(asked.cpu_shares));
    cpu.set_quota((asked.cpu_quota != 0).then_some(asked.cpu_quota));
    cpu.set_period((asked.cpu_period != 0).then_some(asked.cpu_period));
    cpu.set_cpus((!asked.cpuset_cpus.is_empty()).then(|| asked.cpuset_cpus.clone()));
    cpu.set_mems((!asked.cpuset_mems.is_empty()).then(|| asked.cpuset_mems.clone()));
    (cpu != LinuxCpu::default()).then_some(cpu)
}

fn hugepages(asked: &Resources) -> Option<Vec<LinuxHugepageLimit>> {
    let limits: Vec<_> = asked
        .hugepages
        .iter()
        .map(|(size, bytes)| {
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(size.clone());
            limit.set_limit(i64::try_from(*bytes).unwrap_or(i64::MAX));
            limit
        })
        .collect();
    (!limits.is_empty()).then_some(limits)
}
