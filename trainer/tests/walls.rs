//! A model, a loss and a layout that this project does not have, declared here as a newcomer would. They train, and one
//! rank and two ranks end with the same weights. The order, the reduction tree and the step know none of them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fovea_collectives::local::{DEFAULT_CHUNK_F32, LocalCollective, LocalOptions};
use fovea_collectives::{AbortHandle, Collective, Solo};
use fovea_coordinator::order::{EpochOrder, Grain, rank_shards};
use fovea_dataset::{Dataset, LayoutChoice, PrepareOptions, Silent, prepare};
use fovea_run::config::Config;
use fovea_synth::{SynthOptions, synth};
use fovea_task::Level;
use fovea_trainer::lanes::ThreadLanes;
use fovea_trainer::models::ModelEntry;
use fovea_trainer::objective::{Denominators, HeadLoss};
use fovea_trainer::precision::Precision;
use fovea_trainer::replica::Replica;
use fovea_trainer::samples::{Loader, Part, SampleSource, order_input};
use fovea_trainer::train::Peers;

const GRADES: [&str; 3] = ["none", "mild", "severe"];

/// A linear layer over the mean colour of a whole image, with one softmax head.
mod model {
    use fovea_run::config::ModelConfig;
    use fovea_task::Task;
    use fovea_trainer::Result;
    use fovea_trainer::models::{Blueprint, Input, Linear, Macs, Model, Pass, Sizes};
    use tch::{Kind, Tensor};

    pub struct MeanColour {
        head: Linear,
    }

    impl MeanColour {
        pub fn declare(b: &mut Blueprint, task: &Task, _: &ModelConfig) -> Result<Box<dyn Model>> {
            let classes = task.targets()[0].classes.len() as i64;
            let head = Linear::declare(b, "head", 3, classes);
            Ok(Box::new(Self { head }))
        }
    }

    impl Model for MeanColour {
        fn forward(&self, pass: &Pass<'_>, input: &Input<'_>) -> Result<Vec<Tensor>> {
            let pixels = input.globals.f_to_kind(Kind::Float)?;
            let colour = pixels.f_mean_dim(&[2i64, 3][..], false, Kind::Float)?; // [b, 3]
            Ok(vec![self.head.forward(pass, &colour)?])
        }

        fn macs(&self, blueprint: &Blueprint, sizes: &Sizes) -> Macs {
            self.head.macs(blueprint, sizes.images)
        }
    }
}

/// Cross entropy over a softmax, on the CPU only.
mod loss {
    use fovea_kernels::Result;
    use fovea_kernels::cuda::Op;
    use fovea_kernels::cuda::source::{Source, SourceFile};
    use fovea_kernels::loss::{Loss, LossAt, LossEntry, softmax};
    use fovea_task::{Kind, Label};

    #[derive(Debug)]
    pub struct CrossEntropy(pub usize);

    static ENTRY: LossEntry = LossEntry {
        name: "cross_entropy",
        kind: Kind::OneOf,
        build: |settings| Ok(std::sync::Arc::new(CrossEntropy(settings.alpha.len()))),
        source: Source {
            file: SourceFile {
                name: "none.cu",
                text: "",
            },
            kernels: &[],
        },
    };

    impl Loss for CrossEntropy {
        fn entry(&self) -> &'static LossEntry {
            &ENTRY
        }

        fn classes(&self) -> usize {
            self.0
        }

        fn host(&self, z: &[f32], labels: &[Label], scale: f32, dz: &mut [f32]) -> Result<f64> {
            let mut sum = 0.0;
            let rows = z.chunks(self.0).zip(dz.chunks_mut(self.0));
            for ((z, dz), label) in rows.zip(labels) {
                let p = softmax(z);
                sum -= f64::from(p[label.0 as usize]).ln();
                for (class, (dz, p)) in dz.iter_mut().zip(p).enumerate() {
                    *dz = scale * (p - f32::from(u8::from(class as u64 == label.0)));
                }
            }
            Ok(sum)
        }

        fn record(&self) -> &[u8] {
            &[]
        }

        fn scratch_bytes(&self, _: usize) -> usize {
            0
        }

        fn op(&self, _: LossAt) -> Box<dyn Op> {
            unreachable!("this test computes on the CPU")
        }
    }
}

/// A layout with one folder per grade, without masks.
mod layout {
    use fovea_dataset::raw::{Folders, RawImage, RawSet, Scan};
    use fovea_dataset::{Layout, Result};
    use fovea_task::{Class, Kind, Label, Level, Target, Task};

    use super::GRADES;

    pub struct GradeFolders;

    impl Layout for GradeFolders {
        fn name(&self) -> &'static str {
            "grade-folders"
        }

        fn looks_like(&self) -> &'static str {
            "none/, mild/ and severe/ with pictures"
        }

        fn is_at(&self, folders: &Folders, folder: &str) -> bool {
            folders.named(folder, &GRADES).len() == GRADES.len()
        }

        fn read(&self, scan: &mut Scan, root: &str) -> Result<RawSet> {
            let class = |name: &str| Class {
                name: name.to_owned(),
                title: format!("{name} retinopathy"),
                colour: [255, 128, 0],
            };
            let target = Target {
                name: "grade".to_owned(),
                level: Level::Image,
                kind: Kind::OneOf,
                classes: GRADES.map(class).into(),
                union_of_cells: false,
            };
            let mut images = Vec::new();
            for (grade, name) in GRADES.iter().enumerate() {
                for folder in scan.folders().named(root, &[*name]) {
                    let pictures = scan.pictures(folder);
                    images.extend(pictures.iter().map(|picture| RawImage {
                        labels: vec![(0, Label(grade as u64))],
                        ..picture.image()
                    }));
                }
            }
            let task = Task::new(vec![target]).map_err(|e| scan.error(e, "correct the task"))?;
            Ok(RawSet { task, images })
        }
    }
}

static MODEL: ModelEntry = ModelEntry {
    name: "mean_colour",
    grain: Grain::Image,
    reads_images: true,
    options: &[],
    declare: model::MeanColour::declare,
};

/// Synthetic photographs in one folder per grade, prepared as a dataset.
fn dataset(dir: &Path) -> Dataset {
    let (made, raw, out) = (dir.join("made"), dir.join("raw"), dir.join("data"));
    let (images, size, patch, seed) = (12, 256, 64, 3);
    synth(&made, &SynthOptions { images, size, seed }, &Silent).unwrap();
    let pictures = std::fs::read_dir(made.join("Seg-set/Original_Images")).unwrap();
    let mut pictures: Vec<_> = pictures.map(|entry| entry.unwrap().path()).collect();
    pictures.sort();
    for (index, picture) in pictures.iter().enumerate() {
        let folder = raw.join(GRADES[index % GRADES.len()]);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::rename(picture, folder.join(picture.file_name().unwrap())).unwrap();
    }
    let options = PrepareOptions {
        layout: LayoutChoice::Given(&layout::GradeFolders),
        size,
        patch,
        ..PrepareOptions::default()
    };
    prepare(&raw, &out, &options, &Silent).unwrap();
    Dataset::open(&out).unwrap()
}

/// Trains two steps as one of the ranks; returns the weights' hash and the steps' losses.
fn train(data: &Arc<Dataset>, mut ranks: Box<dyn Collective>) -> (String, Vec<f64>) {
    let mut config = Config::preset("demo").unwrap();
    config.data.global_size = 64;
    config.train.images_per_step = 3;
    config.train.virtual_shards = 2;
    let (precision, grain) = (Precision::F32, MODEL.grain);
    let source = SampleSource::new(Arc::clone(data), &config, grain, precision, false);
    let objective = vec![HeadLoss {
        level: Level::Image,
        loss: Arc::new(loss::CrossEntropy(GRADES.len())),
        weight: 1.0,
    }];
    let (built, lanes) = (
        MODEL.build(data.task(), &config.model).unwrap(),
        ThreadLanes::one(),
    );
    let mut replica = Replica::new(&config, built, precision, objective, lanes, None).unwrap();
    let order = EpochOrder::new(&order_input(data, grain, &config), 0).unwrap();
    assert_eq!(order.total_samples(), order.units().len() as u64);
    let part = Part {
        shards: rank_shards(ranks.rank(), ranks.world(), 2).unwrap(),
        virtual_shards: 2,
        images_per_step: 3,
    };
    let load = move |units: &[_], epoch| source.load(units, Some(epoch));
    let mut loader = Loader::spawn(load, Arc::new(order), 0, part).unwrap();
    let mut losses = Vec::new();
    for step in 1..=2 {
        let batch = loader.next_batch().unwrap().unwrap();
        let total = Denominators {
            images: batch.images,
            patches: batch.patches,
        };
        assert_eq!((total.images, total.patches), (3, 0));
        let mut peers = Peers {
            collective: ranks.as_mut(),
            patience: Duration::from_secs(60),
        };
        let sums = replica.attempt(&batch.shards, 0, total, &mut peers, &mut || ());
        let sums = sums.unwrap();
        let verdict = replica.verdict(&sums, total);
        losses.push(verdict.loss);
        replica.commit(sums, &config, 0.01, step, verdict).unwrap();
    }
    (replica.weights_blake3(2).unwrap(), losses)
}

#[test]
fn a_model_a_loss_and_a_layout_of_ones_own_train_the_same_on_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let data = Arc::new(dataset(dir.path()));
    assert_eq!(data.manifest().format_version(), 2);
    let alone = train(&data, Box::new(Solo::new(&AbortHandle::new())));
    // With three classes, a model that has learned nothing has a loss of about ln 3.
    assert!((alone.1[0] - 3f64.ln()).abs() < 0.7, "{:?}", alone.1);
    assert_ne!(alone.1[0], alone.1[1]);

    let meeting = format!("walls-{}", std::process::id());
    let until = Instant::now() + Duration::from_secs(60);
    let both = std::thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| {
            let options = LocalOptions {
                run_id: meeting.clone(),
                generation: 1,
                rank,
                world: 2,
                machines: Vec::new(),
                chunk_f32: DEFAULT_CHUNK_F32,
            };
            let data = &data;
            scope.spawn(move || {
                let joined = LocalCollective::join(&options, &AbortHandle::new(), until);
                train(data, Box::new(joined.unwrap()))
            })
        });
        ranks.map(|rank| rank.join().unwrap())
    });
    assert_eq!(both, [alone.clone(), alone]);
}
