//! Copies of a prepared dataset on a node's own disk: interrupted, damaged, competing, and read as they arrive.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

#[expect(dead_code, reason = "the tests of `prepare` use the rest")]
#[path = "../prepare/raw.rs"]
mod raw;

mod faults;
mod reading;

use std::fs;
use std::path::{Path, PathBuf};

use fovea_dataset::stage::{
    StageOptions, StageOutcome, UnstageOutcome, stage, staged_dir, unstage,
};
use fovea_dataset::{Dataset, Error, Manifest, Silent};

/// 30 images in 8 shards.
const IMAGES: u32 = 30;
const SHARDS: usize = 8;

const OPTIONS: StageOptions = StageOptions {
    threads: 3,
    margin_bytes: 0,
};

/// A prepared dataset and a scratch directory.
struct Place {
    root: tempfile::TempDir,
    data: PathBuf,
    scratch: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = raw::dir();
        let data = root.path().join("data");
        raw::run(&raw::fgadr(root.path(), IMAGES), &data).unwrap();
        let scratch = root.path().join("scratch");
        Self {
            root,
            data,
            scratch,
        }
    }

    fn stage(&self) -> Result<StageOutcome, Error> {
        stage(&self.data, &self.scratch, &OPTIONS, &Silent)
    }

    /// Where the copy is.
    fn copy(&self) -> PathBuf {
        staged_dir(&self.scratch, &Manifest::load(&self.data).unwrap())
    }

    /// The outcome of a copy of which `copied` shards were missing.
    fn staged(&self, copied: usize) -> StageOutcome {
        let manifest = Manifest::load(&self.data).unwrap();
        StageOutcome::Staged {
            dir: self.copy(),
            bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
            copied,
            kept: SHARDS - copied,
        }
    }

    /// The copy has the original's bytes, and nothing else but the empty file that readers lock.
    fn assert_whole(&self) {
        let mut copy = raw::tree(&self.copy());
        copy.retain(|(name, bytes)| !(name == "in-use" && bytes.is_empty()));
        assert!(copy == raw::tree(&self.data), "copy and original differ");
    }
}

fn shard(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("shard-{number:05}.safetensors"))
}

/// Writes into a file that is protected.
fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    let mut permissions = fs::metadata(path).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "the test's own file")]
    permissions.set_readonly(false);
    fs::set_permissions(path, permissions).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_copy_is_a_dataset_of_the_same_bytes() {
    let place = Place::new();
    assert_eq!(place.stage().unwrap(), place.staged(SHARDS));
    place.assert_whole();
    let mode =
        |dir: &Path| std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir).unwrap()) & 0o777;
    assert_eq!(
        mode(&place.copy()),
        0o700,
        "nobody else can exchange what is in it"
    );
    assert_ne!(
        mode(&place.scratch),
        0o700,
        "the place itself is not closed to others"
    );
    let (original, copy) = (
        Dataset::open(&place.data).unwrap(),
        Dataset::open(&place.copy()).unwrap(),
    );
    for i in 0..original.len() {
        assert_eq!(original.image(i).data, copy.image(i).data);
    }
    // Again: everything is there.
    assert_eq!(place.stage().unwrap(), place.staged(0));
    place.assert_whole();
}

#[test]
fn another_dataset_has_another_directory() {
    let place = Place::new();
    place.stage().unwrap();
    let first = place.copy();
    fs::remove_dir_all(&place.data).unwrap();
    raw::run(
        &raw::fgadr(&place.root.path().join("b"), IMAGES - 1),
        &place.data,
    )
    .unwrap();
    assert_ne!(place.copy(), first);
    assert_eq!(place.stage().unwrap(), place.staged(SHARDS));
    place.assert_whole();
}

#[test]
fn only_what_was_made_is_removed() {
    let place = Place::new();
    assert_eq!(
        unstage(&place.data, &place.scratch).unwrap(),
        UnstageOutcome::Absent
    );
    place.stage().unwrap();
    fs::write(place.copy().join("shard-00000.safetensors.part"), b"left").unwrap();
    fs::write(place.scratch.join("mine.txt"), b"mine").unwrap();
    assert_eq!(
        unstage(&place.data, &place.scratch).unwrap(),
        UnstageOutcome::Removed
    );
    assert_eq!(
        raw::tree(&place.scratch),
        [("mine.txt".to_owned(), b"mine".to_vec())]
    );
    assert!(!place.copy().exists());

    place.stage().unwrap();
    fs::write(place.copy().join("mine.txt"), b"mine").unwrap();
    assert_eq!(
        unstage(&place.data, &place.scratch).unwrap(),
        UnstageOutcome::Removed
    );
    assert_eq!(
        raw::tree(&place.copy()),
        [("mine.txt".to_owned(), b"mine".to_vec())]
    );
}

#[test]
fn a_directory_that_somebody_else_made_is_refused() {
    let place = Place::new();
    fs::create_dir_all(&place.scratch).unwrap();
    // A link instead of the directory: whoever made it could exchange what is behind it.
    std::os::unix::fs::symlink(&place.data, place.copy()).unwrap();
    let text = place.stage().unwrap_err().to_string();
    assert!(text.contains("\n  help: "), "{text}");
    fs::remove_file(place.copy()).unwrap();
    if !rustix_is_root() {
        return; // only root can give a directory away
    }
    fs::create_dir(place.copy()).unwrap();
    std::os::unix::fs::chown(place.copy(), Some(12_345), None).unwrap();
    let text = place.stage().unwrap_err().to_string();
    assert!(
        text.contains("belongs to user 12345, not to you (user 0)"),
        "{text}"
    );
}

/// Whether this process may do everything.
fn rustix_is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}
