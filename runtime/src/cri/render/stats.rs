//! Figures in answers.

use berth_image::FsUsage;
use berth_proto::cri;

use super::{container, map, pod};
use crate::pod::{ContainerSnapshot, PodSnapshot};
use crate::stats::cgroup::{Pressure, Stall};
use crate::stats::network::Interface;
use crate::stats::{Reading, Usage};

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

fn optional(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

/// What a container's cgroup and its writable layer say.
pub(in crate::cri) fn container_stats(
    of: &ContainerSnapshot,
    usage: Option<&Reading<Usage>>,
    written: Option<&Reading<FsUsage>>,
) -> cri::ContainerStats {
    let whole = container(of);
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: whole.id,
            metadata: whole.metadata,
            labels: whole.labels,
            annotations: whole.annotations,
        }),
        cpu: usage.map(cpu),
        memory: usage.and_then(memory),
        writable_layer: written.map(filesystem),
        swap: usage.and_then(swap),
        io: usage.and_then(io),
    }
}

/// What a pod's cgroup and namespace say; `usage` is absent where the pod has no cgroup of its own.
pub(in crate::cri) fn pod_stats(
    of: &PodSnapshot,
    usage: Option<&Reading<Usage>>,
    processes: Option<Reading<u64>>,
    network: Option<Reading<Vec<Interface>>>,
    containers: Vec<cri::ContainerStats>,
) -> cri::PodSandboxStats {
    let whole = pod(of);
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: whole.id,
            metadata: whole.metadata,
            labels: map(&of.spec.labels),
            annotations: map(&of.spec.annotations),
        }),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: usage.map(cpu),
            memory: usage.and_then(memory),
            network: network.map(interfaces),
            process: processes.map(|reading| cri::ProcessUsage {
                timestamp: reading.at,
                process_count: number(reading.value),
            }),
            containers,
            io: usage.and_then(io),
        }),
        windows: None,
    }
}

fn cpu(reading: &Reading<Usage>) -> cri::CpuUsage {
    let [pressure, _, _] = &reading.value.figures.pressure;
    cri::CpuUsage {
        timestamp: reading.at,
        usage_core_nano_seconds: optional(reading.value.figures.cpu),
        usage_nano_cores: optional(reading.value.nano_cores),
        psi: pressure.as_ref().map(psi),
    }
}

fn memory(reading: &Reading<Usage>) -> Option<cri::MemoryUsage> {
    let memory = reading.value.figures.memory.as_ref()?;
    let [_, pressure, _] = &reading.value.figures.pressure;
    Some(cri::MemoryUsage {
        timestamp: reading.at,
        working_set_bytes: number(memory.working_set),
        available_bytes: optional(memory.limit.map(|l| l.saturating_sub(memory.working_set))),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.faults),
        major_page_faults: number(memory.major_faults),
        psi: pressure.as_ref().map(psi),
    })
}

fn swap(reading: &Reading<Usage>) -> Option<cri::SwapUsage> {
    let (used, limit) = reading.value.figures.swap?;
    Some(cri::SwapUsage {
        timestamp: reading.at,
        swap_available_bytes: optional(limit.map(|limit| limit.saturating_sub(used))),
        swap_usage_bytes: number(used),
    })
}

fn io(reading: &Reading<Usage>) -> Option<cri::IoUsage> {
    let [_, _, pressure] = &reading.value.figures.pressure;
    let psi = pressure.as_ref().map(psi)?;
    Some(cri::IoUsage { timestamp: reading.at, psi: Some(psi) })
}

fn psi(pressure: &Pressure) -> cri::PsiStats {
    let data = |stall: &Stall| cri::PsiData {
        total: stall.total,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats { full: Some(data(&pressure.full)), some: Some(data(&pressure.some)) }
}

fn filesystem(reading: &Reading<FsUsage>) -> cri::FilesystemUsage {
    cri::FilesystemUsage { timestamp: reading.at, ..super::fs_usage(&reading.value) }
}

fn interfaces(reading: Reading<Vec<Interface>>) -> cri::NetworkUsage {
    let one = |interface: Interface| cri::NetworkInterfaceUsage {
        name: interface.name,
        rx_bytes: number(interface.rx_bytes),
        rx_errors: number(interface.rx_errors),
        tx_bytes: number(interface.tx_bytes),
        tx_errors: number(interface.tx_errors),
    };
    let all: Vec<_> = reading.value.into_iter().map(one).collect();
    cri::NetworkUsage {
        timestamp: reading.at,
        // The one that CNI is asked for.
        default_interface: all.iter().find(|interface| interface.name == "eth0").cloned(),
        interfaces: all,
    }
}
