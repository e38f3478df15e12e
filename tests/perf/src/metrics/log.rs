//! How fast a container's output reaches its log, and at what cost.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::eventually::true_within;

use super::{Clock, Scale, Target};
use crate::pods::{Loaded, Network};
use crate::samples::{Metric, Samples};

/// The bytes of a line, its newline included.
const LINE: u64 = 120;

struct Writer {
    /// Bytes given to one write(2).
    block: u64,
    rate: Metric,
    cpu: Metric,
}

const WRITERS: [Writer; 2] = [
    Writer {
        block: 64 << 10,
        rate: Metric::rate("log, 64 KiB writes: throughput", "MB/s"),
        cpu: Metric::cost("log, 64 KiB writes: CPU per GB", "s"),
    },
    Writer {
        block: LINE,
        rate: Metric::rate("log, a line at a time: throughput", "MB/s"),
        cpu: Metric::cost("log, a line at a time: CPU per GB", "s"),
    },
];

pub(super) async fn measure(target: &Target, scale: Scale) -> Result<Samples> {
    let mut samples = Samples::default();
    for writer in &WRITERS {
        flood(target, writer, scale.log, &mut samples).await?;
    }
    Ok(samples)
}

async fn flood(target: &Target, writer: &Writer, bytes: u64, samples: &mut Samples) -> Result<()> {
    let node = &target.node;
    let pod = node.run(Network::Host).await?;
    let (total, line, block) = (bytes.to_string(), LINE.to_string(), writer.block.to_string());
    let config = node.container("flood", &["flood", &total, &line, &block]);
    let container = node.create(&pod, config).await?;
    let log = node.log(&pod, "flood");

    let clock = Clock::start(target).await?;
    let start = Instant::now();
    node.start(&container).await?;
    true_within("the last line is in the log", Duration::from_secs(300), async || ends(&log))
        .await?;
    let time = start.elapsed().as_secs_f64();
    let cpu = clock.used().await?;

    // The program writes whole blocks of whole lines.
    let per_block = writer.block / LINE;
    let lines = bytes / (per_block * LINE) * per_block;
    let found = full_lines(&log)?;
    ensure!(found == lines + 1, "{found} lines in the log where {} were written", lines + 1);
    let gigabytes = decimal(lines * LINE) / 1e9;
    samples.push(writer.rate, gigabytes * 1e3 / time);
    if let Some(cpu) = cpu {
        samples.push(writer.cpu, cpu.as_secs_f64() / gigabytes);
    }
    node.down(&Loaded { pod, container }).await?;
    std::fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    Ok(())
}

/// Whether the log ends with the program's last line.
fn ends(log: &Path) -> Result<bool> {
    const LAST: &[u8] = b" F end\n";
    let mut file = File::open(log)?;
    if file.metadata()?.len() < 64 {
        return Ok(false);
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::End(-64))?;
    file.read_to_end(&mut tail)?;
    Ok(tail.ends_with(LAST))
}

/// The lines of the log, those counted once that were split.
fn full_lines(log: &Path) -> Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(log)?);
    let mut line = Vec::new();
    let mut count = 0;
    while reader.read_until(b'\n', &mut line)? > 0 {
        // TIME STREAM TAG CONTENT
        let tag = line.split(|byte| *byte == b' ').nth(2);
        count += u64::from(tag == Some(b"F"));
        line.clear();
    }
    Ok(count)
}

#[expect(clippy::cast_precision_loss, reason = "no log here has 2^53 bytes")]
pub(super) fn decimal(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_lines_count_once_and_the_end_is_seen() {
        let path = std::env::temp_dir().join(format!("berth-test-perf-log-{}", std::process::id()));
        let time = "2026-01-01T00:00:00.000000001Z";
        let text = format!("{time} stdout P aaa\n{time} stdout F bb\n{time} stdout F end\n");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(full_lines(&path).unwrap(), 2);
        assert!(ends(&path).unwrap());
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        assert!(!ends(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
