//! Judges libtorch, the CUDA driver, the GPUs and NCCL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Line;

/// `major.minor.patch`; missing parts are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl FromStr for Version {
    type Err = ();

    /// Ignores the text behind the numbers: "22.05.8-1", "2.11.0+cu130".
    fn from_str(text: &str) -> Result<Self, ()> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let mut parts = text[..end].split('.').map(|part| part.parse().ok());
        let first = parts.next().flatten().ok_or(())?;
        let mut next = || parts.next().flatten().unwrap_or(0);
        Ok(Self(first, next(), next()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)?;
        if self.2 > 0 {
            write!(f, ".{}", self.2)?;
        }
        Ok(())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The libtorch that this process has loaded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Libtorch {
    /// Directory of its libraries; none when it is unknown.
    pub dir: Option<PathBuf>,
    /// Its version, from the files next to it; none when no file tells.
    pub version: Option<Version>,
    /// The version that this program was built for.
    pub wanted: Version,
    /// The CUDA version that libtorch was built for; none in a CPU-only build.
    pub cuda: Option<Version>,
    /// Whether libtorch's CUDA libraries are loaded.
    pub cuda_side: bool,
}

/// One GPU, as nvidia-smi lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstalledGpu {
    /// Product name, such as "NVIDIA H200".
    pub name: String,
    /// Total memory in MiB, by nvidia-smi.
    pub memory_mib: u64,
    /// Compute capability, such as 9.0; none when nvidia-smi does not report it.
    pub capability: Option<Version>,
}

/// The CUDA driver and its GPUs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cuda {
    /// The newest CUDA that the driver supports, by libcuda; none without a driver.
    pub driver: Option<Version>,
    /// The GPUs; none when nvidia-smi is missing or fails.
    pub gpus: Option<Vec<InstalledGpu>>,
    /// Number of this job's GPUs on this node, by `SLURM_GPUS_ON_NODE`; none where it is not set.
    pub promised: Option<u32>,
}

impl Cuda {
    fn count(&self) -> usize {
        self.gpus.as_ref().map_or(0, Vec::len)
    }
}

/// The NCCL that libtorch would load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Nccl {
    /// Path of the library, or its bare name when the loader finds it; none without NCCL.
    pub path: Option<PathBuf>,
    /// Its version; none when the library cannot be loaded.
    pub version: Option<Version>,
}

/// Versions of NCCL with faults in collectives; 2.28.9 fixes them.
const BAD_NCCL: std::ops::RangeInclusive<Version> = Version(2, 28, 3)..=Version(2, 28, 8);
/// The lowest compute capability that CUDA 13 supports.
const CUDA_13_CAPABILITY: Version = Version(7, 5, 0);

pub(super) fn libtorch(torch: &Libtorch, cuda: &Cuda) -> Line {
    const TOPIC: &str = "libtorch";
    let from = torch
        .dir
        .as_ref()
        .map(|dir| format!(", from {}", dir.display()))
        .unwrap_or_default();
    let side = match (torch.cuda, torch.cuda_side) {
        (Some(version), true) => format!("with its CUDA {version} side"),
        (Some(version), false) => format!("built for CUDA {version}, its CUDA side not loaded"),
        (None, true) => "with its CUDA side".to_owned(),
        (None, false) => "for the CPU only".to_owned(),
    };
    let Some(version) = torch.version else {
        return Line::warn(
            TOPIC,
            format!("found, {side}{from}, but nothing there says which version"),
            format!(
                "this program needs {}: `make setup` fetches it",
                torch.wanted
            ),
        );
    };
    let Version(major, minor, patch) = version;
    let text = format!("{major}.{minor}.{patch} {side}{from}");
    if (version.0, version.1) != (torch.wanted.0, torch.wanted.1) {
        let remedy = format!(
            "this program was made for {}: `make setup` fetches it; unset LIBTORCH, or set it to that version, and build again",
            torch.wanted
        );
        return Line::fail(TOPIC, text, remedy);
    }
    if cuda.count() > 0 && !torch.cuda_side {
        let remedy = "training uses the CPU here: run `make setup` on a node with a GPU, it fetches the CUDA libraries";
        return Line::warn(TOPIC, text, remedy);
    }
    Line::ok(TOPIC, text)
}

pub(super) fn driver(torch: &Libtorch, cuda: &Cuda) -> Vec<Line> {
    const TOPIC: &str = "CUDA driver";
    let Some(driver) = cuda.driver else {
        let remedy_in_job = "ask the administrator about the driver on this node; inside a container start it with --nv";
        return vec![match cuda.promised {
            Some(n) if n > 0 => Line::fail(
                TOPIC,
                format!("none, though Slurm gives this job {n} GPUs here"),
                remedy_in_job,
            ),
            _ => Line::warn(
                TOPIC,
                "none: training on this node uses the CPU only",
                "for GPUs run this on a GPU node (`srun --gpus=1 fovea doctor`); on a CPU node all is well",
            ),
        }];
    };
    let first = match torch.cuda {
        Some(built) if driver.0 < built.0 => Line::fail(
            TOPIC,
            format!("takes CUDA up to {driver}, libtorch was built for {built}"),
            format!(
                "ask the administrator for a driver that takes CUDA {}.0, or set LIBTORCH to a libtorch of the same version for CUDA {}",
                built.0, driver.0
            ),
        ),
        Some(built) => Line::ok(
            TOPIC,
            format!("takes CUDA up to {driver}, libtorch was built for {built}"),
        ),
        None => Line::ok(TOPIC, format!("takes CUDA up to {driver}")),
    };
    vec![first, gpus(torch, cuda)]
}

fn gpus(torch: &Libtorch, cuda: &Cuda) -> Line {
    const TOPIC: &str = "GPUs";
    let Some(gpus) = cuda.gpus.as_ref().filter(|gpus| !gpus.is_empty()) else {
        return Line::warn(
            TOPIC,
            "none to be seen, though there is a driver",
            "`nvidia-smi` says why; in a job ask for GPUs (`--gpus-per-node`)",
        );
    };
    let text = summary(gpus);
    let too_old = gpus.iter().find(|gpu| {
        torch.cuda.is_some_and(|built| built.0 >= 13)
            && gpu.capability.is_some_and(|c| c < CUDA_13_CAPABILITY)
    });
    if let Some(gpu) = too_old {
        let capability = gpu.capability.unwrap_or_default();
        return Line::fail(
            TOPIC,
            format!(
                "{text}: {} has compute capability {capability}, libtorch for CUDA 13 needs {CUDA_13_CAPABILITY}",
                gpu.name
            ),
            "choose newer GPUs (`--constraint`), or set LIBTORCH to a libtorch of the same version for CUDA 12",
        );
    }
    match cuda.promised {
        Some(n) if n as usize > gpus.len() => Line::fail(
            TOPIC,
            format!("{text}, though Slurm gives this job {n} here"),
            "tell the administrator: a GPU of this node does not work",
        ),
        _ => Line::ok(TOPIC, text),
    }
}

/// "2 x NVIDIA H200 (140 GiB, compute capability 9.0)"
fn summary(gpus: &[InstalledGpu]) -> String {
    let mut kinds: Vec<(&InstalledGpu, usize)> = Vec::new();
    for gpu in gpus {
        match kinds.iter_mut().find(|(kind, _)| kind == &gpu) {
            Some((_, count)) => *count += 1,
            None => kinds.push((gpu, 1)),
        }
    }
    let texts = kinds.iter().map(|(gpu, count)| {
        let capability = gpu
            .capability
            .map(|c| format!(", compute capability {c}"))
            .unwrap_or_default();
        let gib = gpu.memory_mib as f64 / 1024.0;
        format!("{count} x {} ({gib:.0} GiB{capability})", gpu.name)
    });
    texts.collect::<Vec<_>>().join(", ")
}

pub(super) fn nccl(nccl: &Nccl, cuda: &Cuda) -> Line {
    const TOPIC: &str = "NCCL";
    let many = cuda.count() > 1 || cuda.promised.is_some_and(|n| n > 1);
    let place = nccl
        .path
        .as_ref()
        .map(|path| format!(", from {}", path.display()))
        .unwrap_or_default();
    match (nccl.version, &nccl.path) {
        (Some(version), _) if BAD_NCCL.contains(&version) => Line::fail(
            TOPIC,
            format!(
                "{version}{place}: {} to {} have known faults",
                BAD_NCCL.start(),
                BAD_NCCL.end()
            ),
            "use 2.28.9 or newer (`make setup` fetches one that is good), or 2.27",
        ),
        (Some(version), _) => Line::ok(TOPIC, format!("{version}{place}")),
        (None, Some(_)) => Line::warn(
            TOPIC,
            format!("found{place}, but it does not say its version"),
            "use the NCCL that `make setup` fetches",
        ),
        (None, None) if many => Line::warn(
            TOPIC,
            "none: the GPUs cannot exchange gradients directly",
            "run `make setup` on a node with a GPU, it fetches NCCL with the CUDA libraries; or load your site's module",
        ),
        (None, None) => Line::ok(TOPIC, "none, and none is needed without several GPUs"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Ok as Good, Warn};
    use super::super::tests::about;
    use super::*;

    fn torch() -> Libtorch {
        Libtorch {
            dir: Some("/opt/torch/lib".into()),
            version: Some(Version(2, 11, 0)),
            wanted: Version(2, 11, 0),
            cuda: Some(Version(13, 0, 0)),
            cuda_side: true,
        }
    }

    fn h200(n: usize) -> Cuda {
        let gpu = InstalledGpu {
            name: "NVIDIA H200".to_owned(),
            memory_mib: 143_771,
            capability: Some(Version(9, 0, 0)),
        };
        Cuda {
            driver: Some(Version(13, 0, 0)),
            gpus: Some(vec![gpu; n]),
            promised: None,
        }
    }

    #[test]
    fn versions_are_read_out_of_what_tools_print() {
        assert_eq!("22.05.8-1".parse(), Ok(Version(22, 5, 8)));
        assert_eq!("2.11.0+cu130".parse(), Ok(Version(2, 11, 0)));
        assert_eq!("13".parse(), Ok(Version(13, 0, 0)));
        assert_eq!("none".parse::<Version>(), Err(()));
        assert_eq!(Version(13, 0, 0).to_string(), "13.0");
        assert!(Version(2, 9, 9) < Version(2, 28, 3));
    }

    #[test]
    fn libtorch_must_be_the_one_that_was_built_against() {
        let verdict = |torch: Libtorch, cuda: &Cuda| about(&[libtorch(&torch, cuda)], "libtorch").0;
        assert_eq!(verdict(torch(), &h200(1)), Good);
        let other = Libtorch {
            version: Some(Version(2, 10, 1)),
            ..torch()
        };
        assert_eq!(verdict(other, &h200(1)), Fail);
        assert_eq!(
            verdict(
                Libtorch {
                    version: None,
                    ..torch()
                },
                &h200(1)
            ),
            Warn
        );
        let cpu = Libtorch {
            cuda_side: false,
            ..torch()
        };
        assert_eq!(verdict(cpu.clone(), &h200(1)), Warn, "GPUs lie idle");
        assert_eq!(verdict(cpu, &Cuda::default()), Good);
    }

    #[test]
    fn the_driver_must_take_libtorchs_cuda() {
        let lines = driver(&torch(), &h200(8));
        assert_eq!(about(&lines, "CUDA driver").0, Good);
        assert_eq!(
            about(&lines, "GPUs"),
            (Good, "8 x NVIDIA H200 (140 GiB, compute capability 9.0)")
        );
        let old = Cuda {
            driver: Some(Version(12, 8, 0)),
            ..h200(1)
        };
        let lines = driver(&torch(), &old);
        let (verdict, text) = about(&lines, "CUDA driver");
        assert_eq!(
            (verdict, text),
            (Fail, "takes CUDA up to 12.8, libtorch was built for 13.0")
        );
        let cpu = Libtorch {
            cuda: None,
            ..torch()
        };
        assert_eq!(about(&driver(&cpu, &old), "CUDA driver").0, Good);
        assert_eq!(
            about(&driver(&torch(), &Cuda::default()), "CUDA driver").0,
            Warn
        );
        let promised = Cuda {
            promised: Some(2),
            ..Cuda::default()
        };
        assert_eq!(about(&driver(&torch(), &promised), "CUDA driver").0, Fail);
    }

    #[test]
    fn gpus_are_new_enough_and_all_there() {
        let with = |cuda: Cuda| {
            let lines = driver(&torch(), &cuda);
            about(&lines, "GPUs").0
        };
        let mut mixed = h200(2);
        if let Some(gpus) = &mut mixed.gpus {
            gpus[1].name = "Tesla V100".to_owned();
            gpus[1].capability = Some(Version(7, 0, 0));
        }
        let lines = driver(&torch(), &mixed);
        let (verdict, text) = about(&lines, "GPUs");
        assert_eq!(verdict, Fail);
        assert!(
            text.contains("Tesla V100 has compute capability 7.0, libtorch for CUDA 13 needs 7.5"),
            "{text}"
        );
        assert_eq!(
            with(Cuda {
                gpus: None,
                ..h200(1)
            }),
            Warn
        );
        assert_eq!(with(h200(0)), Warn);
        assert_eq!(
            with(Cuda {
                promised: Some(4),
                ..h200(4)
            }),
            Good
        );
        assert_eq!(
            with(Cuda {
                promised: Some(4),
                ..h200(3)
            }),
            Fail
        );
    }

    #[test]
    fn bad_versions_of_nccl_are_known() {
        let verdict = |version: Option<Version>, gpus: usize| {
            let found = Nccl {
                version,
                path: version.map(|_| "/lib/libnccl.so.2".into()),
            };
            about(&[nccl(&found, &h200(gpus))], "NCCL").0
        };
        for patch in 3..=8 {
            assert_eq!(
                verdict(Some(Version(2, 28, patch)), 2),
                Fail,
                "2.28.{patch}"
            );
        }
        for good in [
            Version(2, 27, 7),
            Version(2, 28, 2),
            Version(2, 28, 9),
            Version(2, 29, 3),
        ] {
            assert_eq!(verdict(Some(good), 2), Good, "{good}");
        }
        assert_eq!(verdict(None, 2), Warn);
        assert_eq!(verdict(None, 1), Good);
        assert_eq!(verdict(None, 0), Good);
        let mute = Nccl {
            version: None,
            path: Some("/lib/libnccl.so.2".into()),
        };
        assert_eq!(about(&[nccl(&mute, &h200(0))], "NCCL").0, Warn);
    }
}
