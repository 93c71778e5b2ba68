//! The facts of the GPU that was measured.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fovea_kernels::cuda::nvrtc::{Nvrtc, Search};
use serde::Serialize;

use fovea_trainer::Result;
use fovea_trainer::gpu::Gpu;

/// The fields that nvidia-smi is asked for, in the order of `GpuFacts::take`.
const QUERY: &str = "driver_version,clocks.sm,clocks.max.sm";
/// How long nvidia-smi may take: its first call after the driver was loaded takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A GPU, its driver and the compiler of its kernels.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuFacts {
    /// The GPU's name in the CUDA driver.
    pub name: String,
    /// Compute capability as `major.minor`, such as `9.0`.
    pub compute_capability: String,
    /// Total memory of the GPU in bytes.
    pub memory_bytes: u64,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// The newest CUDA that the driver supports.
    pub cuda: String,
    /// Version of NVRTC, which compiles the kernels.
    pub nvrtc: String,
    /// Version of the driver; none where nvidia-smi does not report it.
    pub driver: Option<String>,
    /// Clock of the multiprocessors in MHz when these facts were taken; `bench kernels` takes them right after it has
    /// measured. None where nvidia-smi does not report it.
    pub sm_clock_mhz: Option<u32>,
    /// Highest clock of the multiprocessors in MHz; none where nvidia-smi does not report it.
    pub max_sm_clock_mhz: Option<u32>,
}

impl GpuFacts {
    /// Takes the facts of this GPU now.
    pub fn of(gpu: &Gpu) -> Result<Self> {
        let device = gpu.kernels().device();
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let told = nvidia_smi(&id(device.ordinal, visible.as_deref())).unwrap_or_default();
        let mut facts = Self {
            name: device.name.clone(),
            compute_capability: format!("{}.{}", device.arch.0 / 10, device.arch.0 % 10),
            memory_bytes: device.total_bytes as u64,
            multiprocessors: device.multiprocessors,
            cuda: device.driver_version(),
            nvrtc: Nvrtc::open(&Search::from_env())?.version().to_owned(),
            ..Self::default()
        };
        facts.take(&told);
        Ok(facts)
    }

    /// Reads a line that nvidia-smi printed; a field such as `[N/A]` stays none.
    fn take(&mut self, line: &str) {
        let mut fields = line.trim().split(',').map(str::trim);
        let driver = fields
            .next()
            .filter(|text| text.starts_with(|c: char| c.is_ascii_digit()));
        self.driver = driver.map(str::to_owned);
        let mut clock = || fields.next().and_then(|text| text.parse().ok());
        self.sm_clock_mhz = clock();
        self.max_sm_clock_mhz = clock();
    }
}

/// The name that nvidia-smi has for the process's GPU `ordinal`; `visible` is `CUDA_VISIBLE_DEVICES`.
fn id(ordinal: u32, visible: Option<&str>) -> String {
    let chosen = visible.and_then(|list| list.split(',').nth(ordinal as usize));
    let chosen = chosen.map(str::trim).filter(|id| !id.is_empty());
    chosen.map_or_else(|| ordinal.to_string(), str::to_owned)
}

/// What nvidia-smi prints about one GPU; none when there is no such program or it takes too long.
fn nvidia_smi(id: &str) -> Option<String> {
    let mut child = Command::new("nvidia-smi")
        .args([
            "--format=csv,noheader,nounits",
            "--query-gpu",
            QUERY,
            "-i",
            id,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut told = String::new();
    // The output is one line, so all of it is in the pipe.
    child.stdout.take()?.read_to_string(&mut told).ok()?;
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nvidia_smi_prints_is_read() {
        let read = |line: &str| {
            let mut facts = GpuFacts::default();
            facts.take(line);
            (facts.driver, facts.sm_clock_mhz, facts.max_sm_clock_mhz)
        };
        let driver = Some("580.65.06".to_owned());
        assert_eq!(
            read("580.65.06, 1830, 1980\n"),
            (driver.clone(), Some(1830), Some(1980))
        );
        assert_eq!(read("580.65.06, [N/A], 1980"), (driver, None, Some(1980)));
        assert_eq!(read("No devices were found"), (None, None, None));
        assert_eq!(read(""), (None, None, None));
    }

    #[test]
    fn the_gpu_is_found_among_those_that_are_visible() {
        assert_eq!(id(1, None), "1");
        assert_eq!(id(1, Some("3, 5")), "5");
        assert_eq!(id(0, Some("GPU-8a1b")), "GPU-8a1b");
        assert_eq!(id(2, Some("3,5")), "2", "what CUDA itself would refuse");
        assert_eq!(id(0, Some("")), "0");
    }
}
