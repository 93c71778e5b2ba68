//! Round trips, formats, retention; the faults are in `faults`.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod faults;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const KEEP: Retention = Retention {
    keep_last: 3,
    keep_best: true,
};

fn tensor(name: &str, shape: &[usize], data: Vec<f32>) -> NamedTensor {
    NamedTensor {
        name: name.to_string(),
        shape: shape.to_vec(),
        data: TensorData::F32(data),
    }
}

fn snapshot(step: u64) -> Snapshot {
    let float = |i: u64| f32::from_bits((step * 7919 + i * 104_729) as u32 & 0x7F7F_FFFF);
    let floats = |name: &str, shape: &[usize]| {
        let len = shape.iter().product::<usize>() as u64;
        tensor(name, shape, (0..len).map(float).collect())
    };
    let count = NamedTensor {
        name: "bn.num_batches_tracked".to_string(),
        shape: Vec::new(),
        data: TensorData::I64(vec![step as i64]),
    };
    Snapshot {
        step,
        epoch: 3,
        cursor: 12 * step,
        seed: u64::MAX,
        config: "seed = 1 # ä\n".to_string(),
        config_blake3: "c0ffee".to_string(),
        dataset_blake3: "da7a".to_string(),
        image_size: 1280,
        patch: 128,
        framing: fovea_dataset::Framing::default(),
        task: None,
        progress: serde_json::json!({
            "plateau": { "best": 0.1 + 0.2, "reductions": 2 },
            "history": [{ "epoch": 0, "f1_micro": 0.25 }],
            "best": null,
        }),
        best_step: None,
        weights: vec![floats("fc.weight", &[3, 4]), count, floats("a.bias", &[0])],
        optimizer: vec![floats("exp_avg", &[15]), floats("exp_avg_sq", &[15])],
    }
}

/// Saves and waits.
fn save(writer: &mut Writer, snapshot: Snapshot) -> Result<Saved> {
    let (tell, hear) = mpsc::channel();
    writer.save(snapshot, move |result| tell.send(result).unwrap());
    writer.wait();
    hear.try_recv()
        .expect("`wait` returns after the last save's outcome is told")
}

/// A run with checkpoints of these steps.
fn run_with(steps: &[u64]) -> TempDir {
    let run = TempDir::new().unwrap();
    let mut writer = Writer::spawn(run.path(), KEEP).unwrap();
    for step in steps {
        save(&mut writer, snapshot(*step)).unwrap();
    }
    run
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn newest_step(dir: &Path) -> u64 {
    newest_complete(dir).unwrap().unwrap().state.step
}

fn by_name(mut tensors: Vec<NamedTensor>) -> Vec<NamedTensor> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

#[test]
fn what_is_saved_comes_back_bit_for_bit() {
    let run = run_with(&[7]);
    let path = directory(run.path(), 7);
    let (saved, loaded) = (snapshot(7), load(&path).unwrap());
    let state = &loaded.state;
    let back = Snapshot {
        step: state.step,
        epoch: state.epoch,
        cursor: state.cursor,
        seed: state.seed,
        config: state.config.clone(),
        config_blake3: state.config_blake3.clone(),
        dataset_blake3: state.dataset_blake3.clone(),
        image_size: state.image_size,
        patch: state.patch,
        framing: state.framing,
        task: state.task.clone(),
        progress: state.progress.clone(),
        best_step: state.best_step,
        weights: loaded.weights.clone(),
        optimizer: loaded.optimizer.clone(),
    };
    let sorted = Snapshot {
        weights: by_name(saved.weights.clone()),
        optimizer: by_name(saved.optimizer.clone()),
        ..saved
    };
    assert_eq!(back, sorted);
    assert_eq!(state.weights_blake3, weights_blake3(&snapshot(7).weights));
    assert_eq!(load_weights(&path).unwrap(), sorted.weights);
    assert_eq!(load_weights(&path.join(WEIGHTS)).unwrap(), sorted.weights);
    assert_eq!(names(&path), [COMPLETE, OPTIMIZER, STATE, WEIGHTS]);
    let text = fs::read_to_string(path.join(STATE)).unwrap();
    assert!(!text.contains("task"), "lesions leave no trace: {text}");
    assert!(is_complete(&path) && !is_complete(run.path()));
    assert_eq!(verify(&path).unwrap(), loaded.state);
}

#[test]
fn half_precision_weights_from_elsewhere_are_widened_and_others_refused() {
    use safetensors::tensor::{Dtype, TensorView};
    let file = TempDir::new().unwrap().path().with_extension("safetensors");
    let write = |dtype, bytes: &[u8]| {
        let view = TensorView::new(dtype, vec![2], bytes).unwrap();
        fs::write(&file, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        load_weights(&file)
    };
    let expected = [tensor("w", &[2], vec![1.5, -0.125])];
    let f16 = [1.5, -0.125].map(half::f16::from_f32);
    assert_eq!(
        write(Dtype::F16, bytemuck::cast_slice(&f16)).unwrap(),
        expected
    );
    let bf16 = [1.5, -0.125].map(half::bf16::from_f32);
    assert_eq!(
        write(Dtype::BF16, bytemuck::cast_slice(&bf16)).unwrap(),
        expected
    );
    let text = write(Dtype::F64, &[0; 16]).unwrap_err().to_string();
    assert!(
        text.contains("tensor w: its type is F64") && text.contains("\n  help: "),
        "{text}"
    );
    fs::remove_file(&file).unwrap();
}

#[test]
fn the_same_snapshot_gives_the_same_bytes_in_any_order_of_tensors() {
    let one = run_with(&[7]);
    let other = TempDir::new().unwrap();
    let mut reversed = snapshot(7);
    reversed.weights.reverse();
    reversed.optimizer.reverse();
    save(&mut Writer::spawn(other.path(), KEEP).unwrap(), reversed).unwrap();
    for name in [WEIGHTS, OPTIMIZER, STATE, COMPLETE] {
        let read = |run: &TempDir| fs::read(directory(run.path(), 7).join(name)).unwrap();
        assert!(read(&one) == read(&other), "{name} differs");
    }
}

#[test]
fn the_safetensors_library_writes_the_same_file() {
    let run = run_with(&[7]);
    let snapshot = snapshot(7);
    let views = snapshot.weights.iter().map(|t| {
        let dtype = match t.data {
            TensorData::I64(_) => safetensors::Dtype::I64,
            _ => safetensors::Dtype::F32,
        };
        let view = safetensors::tensor::TensorView::new(dtype, t.shape.clone(), t.data.bytes());
        (t.name.clone(), view.unwrap())
    });
    let theirs = safetensors::serialize(views, None).unwrap();
    assert_eq!(
        fs::read(directory(run.path(), 7).join(WEIGHTS)).unwrap(),
        theirs
    );
}

/// The hash is in files of users: it must not change. The script in the comment gives the same.
#[test]
fn weights_blake3_is_what_its_description_says() {
    // python3: from blake3 import blake3; from struct import pack; u = lambda n: pack("<Q", n)
    // t = lambda n, d, s, b: u(len(n)) + n + u(len(d)) + d + u(len(s)) + b"".join(map(u, s)) + u(len(b)) + b
    // blake3(b"fovea weights v1\n" + u(2) + t(b"a", b"I64", [], pack("<q", -2))
    //        + t(b"b.w", b"F32", [1, 2], pack("<ff", 1.0, -0.5))).hexdigest()
    let a = NamedTensor {
        name: "a".to_string(),
        shape: Vec::new(),
        data: TensorData::I64(vec![-2]),
    };
    let b = |name: &str, shape: &[usize], data: [f32; 2]| tensor(name, shape, data.to_vec());
    let both = [b("b.w", &[1, 2], [1.0, -0.5]), a.clone()];
    let hash = weights_blake3(&both);
    assert_eq!(
        hash,
        "c5d74d8f7f89e323fddac73433bd5c7b82ffb49068ab0b6f11addc81e9ae4381"
    );
    let [b_w, _] = both.clone();
    assert_eq!(hash, weights_blake3(&[a.clone(), b_w]), "any order");
    let bits = TensorData::I64(vec![i64::from_le_bytes(bytemuck::cast([1.0_f32, -0.5]))]);
    let integers = NamedTensor {
        data: bits,
        ..both[0].clone()
    };
    for other in [
        integers,
        b("b.w", &[2, 1], [1.0, -0.5]),
        b("b.v", &[1, 2], [1.0, -0.5]),
        b("b.w", &[1, 2], [1.0, 0.5]),
    ] {
        assert_ne!(weights_blake3(&[a.clone(), other]), hash);
    }
    assert_ne!(weights_blake3(&[a]), hash);
}

#[test]
fn tensors_that_contradict_themselves_are_refused_and_leave_nothing() {
    let run = run_with(&[1]);
    let mut writer = Writer::spawn(run.path(), KEEP).unwrap();
    type Spoil = fn(&mut Snapshot);
    let bad: [(&str, Spoil); 3] = [
        (
            "tensor fc.weight: its shape is [3, 5], but it has 12 elements",
            |s| {
                s.weights[0].shape = vec![3, 5];
            },
        ),
        ("the name is used twice", |s| {
            s.weights[2].name = "fc.weight".into()
        }),
        ("keeps this name", |s| {
            s.optimizer[0].name = "__metadata__".into()
        }),
    ];
    for (message, spoil) in bad {
        let mut snapshot = snapshot(2);
        spoil(&mut snapshot);
        let error = save(&mut writer, snapshot).unwrap_err().to_string();
        assert!(
            error.contains(message) && error.contains("\n  help: "),
            "{error}"
        );
    }
    assert_eq!(names(run.path()), [dir_name(1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Random bytes and random damage to a header must be errors, never a panic or a huge allocation.
    #[test]
    fn any_bytes_are_no_worse_than_an_error(
        noise in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..120, flip in 1_u8..,
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("w.safetensors");
        fs::write(&path, &noise).unwrap();
        prop_assert!(load_weights(&path).is_err());
        let weights = snapshot(1).weights;
        let encoded = tensors::encode(&weights).unwrap();
        let mut bytes = encoded.header.clone();
        for tensor in &encoded.tensors {
            bytes.extend_from_slice(tensor.data.bytes());
        }
        let at = at % encoded.header.len();
        bytes[at] ^= flip;
        fs::write(&path, &bytes).unwrap();
        let _ = load_weights(&path); // a flip in a name, say, is still a valid file
    }
}

#[test]
fn another_format_is_refused_and_not_stepped_over() {
    for (version, help) in [(1, "or start a new run"), (3, "or a newer one")] {
        let run = run_with(&[1, 2]);
        let newest = directory(run.path(), 2);
        let state = fs::read_to_string(newest.join(STATE)).unwrap();
        let other = state.replace(
            &format!("\"format_version\": {FORMAT_VERSION}"),
            &format!("\"format_version\": {version}"),
        );
        let other = other.replace("\"cursor\"", "\"cursor_of_another_time\"");
        assert_ne!(other, state);
        fs::write(newest.join(STATE), &other).unwrap();
        let hash = blake3::hash(other.as_bytes()).to_hex();
        fs::write(newest.join(COMPLETE), store::complete_text(&hash)).unwrap();
        for error in [
            newest_complete(run.path()).unwrap_err(),
            load(&newest).unwrap_err(),
            load_weights(&newest).unwrap_err(),
        ] {
            let text = error.to_string();
            let message = format!(
                "state.json was made by another version of fovea: it has format version {version}, this \
                 one reads version {FORMAT_VERSION}\n  help: "
            );
            assert!(text.contains(&message) && text.contains(help), "{text}");
            assert!(error.is_usage());
        }
        let complete = store::complete_text(&hash);
        let complete = complete.replace(
            &format!("checkpoint {FORMAT_VERSION}"),
            &format!("checkpoint {version}2"),
        );
        fs::write(newest.join(COMPLETE), complete).unwrap();
        let error = newest_complete(run.path()).unwrap_err();
        let Error::Version { found, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(found, version * 10 + 2);
    }
}

#[test]
fn a_run_of_which_no_checkpoint_is_whole_is_not_begun_anew() {
    let run = run_with(&[1, 2]);
    for (step, message) in [
        (1, None),
        (2, Some("none of the 2 checkpoints can be used, the newest")),
    ] {
        fs::remove_file(directory(run.path(), step).join(COMPLETE)).unwrap();
        match message {
            None => assert_eq!(newest_step(run.path()), 2),
            Some(message) => {
                let error = newest_complete(run.path()).unwrap_err();
                let text = error.to_string();
                assert!(text.contains(message) && error.is_usage(), "{text}");
                assert!(text.contains("step-00000002 is not a complete"), "{text}");
            }
        }
    }
    fs::remove_dir_all(directory(run.path(), 1)).unwrap();
    let text = newest_complete(run.path()).unwrap_err().to_string();
    assert!(
        text.contains("the only checkpoint cannot be used"),
        "{text}"
    );
}

#[test]
fn what_is_no_checkpoint_is_told_apart() {
    let run = run_with(&[1]);
    let around = TempDir::new().unwrap();
    fs::create_dir(around.path().join("checkpoints")).unwrap();
    let text = load(around.path()).unwrap_err().to_string();
    assert!(
        text.contains("it has no file COMPLETE (it is a run directory)"),
        "{text}"
    );
    let text = load(&run.path().join("nowhere")).unwrap_err().to_string();
    assert!(
        text.contains("could not open") && text.contains("nowhere"),
        "{text}"
    );
    let text = load_weights(&directory(run.path(), 1).join(STATE))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("state.json: it is no safetensors file"),
        "{text}"
    );
    let empty = TempDir::new().unwrap();
    assert!(newest_complete(empty.path()).unwrap().is_none());
    assert!(list(empty.path()).unwrap().is_empty());
}

#[test]
fn the_writer_keeps_the_newest_and_the_best() {
    let run = TempDir::new().unwrap();
    let mut writer = Writer::spawn(
        run.path(),
        Retention {
            keep_last: 2,
            ..KEEP
        },
    )
    .unwrap();
    let mut removed = Vec::new();
    for step in [10, 20, 30, 40, 50] {
        let mut snapshot = snapshot(step);
        snapshot.best_step = Some(20.min(step));
        removed.push(save(&mut writer, snapshot).unwrap().removed);
    }
    assert_eq!(removed, [vec![], vec![], vec![10], vec![], vec![30]]);
    assert_eq!(names(run.path()), [20, 40, 50].map(dir_name));
    // Told not to keep the best, it does not; directories that are no checkpoints of ours are
    // neither counted nor touched.
    fs::create_dir(directory(run.path(), 60)).unwrap();
    fs::create_dir(run.path().join("step-7")).unwrap();
    drop(writer);
    let newest_only = Retention {
        keep_last: 2,
        keep_best: false,
    };
    let mut writer = Writer::spawn(run.path(), newest_only).unwrap();
    let mut last = snapshot(70);
    last.best_step = Some(20);
    assert_eq!(save(&mut writer, last).unwrap().removed, [20, 40]);
    assert_eq!(
        names(run.path()),
        ["step-00000050", "step-00000060", "step-00000070", "step-7"]
    );
    let steps = list(run.path()).unwrap();
    let steps: Vec<_> = steps.iter().map(|e| (e.step, e.state.is_ok())).collect();
    assert_eq!(steps, [(50, true), (60, false), (70, true)]);
}

#[test]
fn the_same_step_again_replaces_the_old_one() {
    let run = run_with(&[5]);
    let before = verify(&directory(run.path(), 5)).unwrap();
    let mut again = snapshot(5);
    again.cursor = 99;
    again.weights[0] = tensor("fc.weight", &[1], vec![1.0]);
    let saved = save(&mut Writer::spawn(run.path(), KEEP).unwrap(), again).unwrap();
    let after = verify(&saved.path).unwrap();
    assert_eq!(after.cursor, 99);
    assert_eq!(after.weights_blake3, saved.weights_blake3);
    assert_ne!(after.weights_blake3, before.weights_blake3);
    assert_eq!(names(run.path()), [dir_name(5)]);
}

#[test]
fn going_on_from_an_older_one_sets_the_newer_ones_aside() {
    let run = run_with(&[1, 2, 3]);
    let moved = set_aside_newer(run.path(), 1).unwrap();
    assert_eq!(moved.len(), 2);
    assert_eq!(newest_step(run.path()), 1);
    save(&mut Writer::spawn(run.path(), KEEP).unwrap(), snapshot(2)).unwrap();
    let again = set_aside_newer(run.path(), 1).unwrap();
    assert!(again[0].ends_with("abandoned-step-00000002-2"), "{again:?}");
    assert!(verify(&moved[0]).is_ok(), "set aside, not damaged");
    assert!(
        set_aside_newer(TempDir::new().unwrap().path(), 1)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn saving_waits_only_for_the_save_before() {
    let run = TempDir::new().unwrap();
    let mut writer = Writer::spawn(run.path(), KEEP).unwrap();
    let (open, gate) = mpsc::channel::<()>();
    let opened = Arc::new(AtomicBool::new(false));
    // The first save goes on until the gate opens; handing it over does not wait for that.
    writer.save(snapshot(1), move |saved| {
        assert_eq!(saved.unwrap().step, 1);
        gate.recv().unwrap();
    });
    let (tell, hear) = mpsc::channel();
    let was_open = Arc::clone(&opened);
    let second = std::thread::spawn(move || {
        tell.send(None).unwrap();
        let done = tell.clone();
        writer.save(snapshot(2), move |saved| done.send(saved.ok()).unwrap());
        assert!(
            was_open.load(Ordering::SeqCst),
            "handed over while the first was going"
        );
        writer.save(snapshot(3), move |saved| tell.send(saved.ok()).unwrap());
        drop(writer); // finishes what was handed over
    });
    assert!(hear.recv().unwrap().is_none());
    for _ in 0..1000 {
        std::thread::yield_now(); // a save that does not wait would get through here
    }
    opened.store(true, Ordering::SeqCst);
    open.send(()).unwrap();
    second.join().unwrap();
    let steps: Vec<u64> = hear.iter().map(|saved| saved.unwrap().step).collect();
    assert_eq!(steps, [2, 3]);
    assert_eq!(newest_step(run.path()), 3);
}
