use super::*;
use crate::cuda::source::{SourceFile, sources};
use crate::cuda::{Arch, Error};

const NAME: &str = "kernel-sm_90-00.cubin";
const CODE: &[u8] = b"code of a kernel";

/// Asks for the entry; returns its code and outcome, and whether the compiler ran.
fn get(folder: &Path) -> (Vec<u8>, CacheOutcome, bool) {
    let mut compiled = false;
    let (code, outcome) = get_or_compile(folder, NAME, || {
        compiled = true;
        Ok(CODE.to_vec())
    })
    .unwrap();
    (code, outcome, compiled)
}

#[test]
fn the_second_request_does_not_compile() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("made/when/needed");
    assert_eq!(get(&inner), (CODE.to_vec(), CacheOutcome::Stored, true));
    assert_eq!(get(&inner), (CODE.to_vec(), CacheOutcome::Hit, false));
    let files: Vec<_> = std::fs::read_dir(&inner).unwrap().collect();
    assert_eq!(files.len(), 1, "nothing is left aside: {files:?}");
}

#[test]
fn every_damage_is_noticed_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    get(folder.path());
    let good = std::fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|n| good[..n].to_vec()).collect();
    damaged.push([&good[..], b"x"].concat());
    for byte in 0..good.len() {
        let mut flipped = good.clone();
        flipped[byte] ^= 0x10;
        damaged.push(flipped);
    }
    for bytes in damaged {
        std::fs::write(&path, &bytes).unwrap();
        let (code, outcome, compiled) = get(folder.path());
        assert!(matches!(outcome, CacheOutcome::Replaced(_)), "{outcome:?}");
        assert!(compiled && code == CODE);
        assert_eq!(std::fs::read(&path).unwrap(), good);
    }
}

/// The folder's parent is a file, because root may write to any folder.
#[test]
fn a_folder_that_cannot_be_written_costs_only_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, outcome, compiled) = get(&file.join("cache"));
    assert!(compiled && code == CODE);
    let CacheOutcome::NotStored(why) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(why.contains(NAME), "{why}");
}

#[test]
fn a_failed_compilation_stores_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let failed = get_or_compile(folder.path(), NAME, || Err(Error::DriverMissing));
    assert_eq!(failed, Err(Error::DriverMissing));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn names_tell_sources_targets_and_versions_apart() {
    let all: Vec<_> = sources().collect();
    let source = *all[0];
    let changed = Source {
        file: SourceFile {
            text: "other",
            ..source.file
        },
        ..source
    };
    let arch = Arch(90);
    let base = entry_name(&source, CompileTarget::Cubin(arch), "13.0");
    assert!(
        base.starts_with("patch_crop-sm_90-") && base.ends_with(".cubin"),
        "{base}"
    );
    assert_eq!(
        base,
        entry_name(&source, CompileTarget::Cubin(arch), "13.0")
    );
    for other in [
        entry_name(&changed, CompileTarget::Cubin(arch), "13.0"),
        entry_name(all[1], CompileTarget::Cubin(arch), "13.0"),
        entry_name(&source, CompileTarget::Cubin(Arch(80)), "13.0"),
        entry_name(&source, CompileTarget::Ptx(arch), "13.0"),
        entry_name(&source, CompileTarget::Cubin(arch), "13.1"),
    ] {
        assert_ne!(base, other);
    }
}
