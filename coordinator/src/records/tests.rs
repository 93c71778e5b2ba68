//! Appending, torn tails, damage, and a disk that is full.

use proptest::prelude::*;

use super::*;

const FORMAT: RecordFormat = RecordFormat {
    magic: *b"FOVEATST",
    version: 3,
};

fn write(path: &Path, records: &[String]) -> Vec<u64> {
    let (mut file, before) = RecordFile::<String>::open(path, FORMAT).unwrap();
    assert_eq!(before, Vec::<String>::new());
    let mut ends = vec![file.end];
    for record in records {
        file.append(record).unwrap();
        ends.push(file.end);
    }
    file.sync().unwrap();
    ends
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.unwrap().success());
    let error = read::<String>(&path, FORMAT).unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
    let error = RecordFile::<String>::open(&path, FORMAT).unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Cut anywhere, with or without zeros behind: the whole records before the cut are kept,
    /// and appending goes on.
    #[test]
    fn torn_tails_are_cut(
        records in prop::collection::vec(".{0,40}", 1..8),
        at in any::<prop::sample::Index>(),
        zeros in 0usize..80,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let ends = write(&path, &records);
        let whole = std::fs::read(&path).unwrap();
        let cut = at.index(whole.len() + 1);
        let mut bytes = whole[..cut].to_vec();
        bytes.resize(cut + zeros, 0);
        std::fs::write(&path, &bytes).unwrap();
        let kept = ends.iter().filter(|end| **end <= cut as u64).count().saturating_sub(1);
        match RecordFile::<String>::open(&path, FORMAT) {
            Ok((mut file, found)) => {
                // A record whose last bytes are zeros anyway may come back whole.
                prop_assert!(found.len() >= kept);
                prop_assert_eq!(&found[..], &records[..found.len()]);
                file.append(&"more".to_owned()).unwrap();
                drop(file);
                let again: Contents<String> = read(&path, FORMAT).unwrap();
                prop_assert_eq!(again.torn, None);
                prop_assert_eq!(again.records.len(), found.len() + 1);
            }
            // A head that is partly there and then zeros is not recognisable as torn.
            Err(Error::Corrupt { .. } | Error::FileVersion { .. }) => prop_assert!(zeros > 0),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    /// A byte changed anywhere is never taken for content.
    #[test]
    fn flipped_bytes_are_found(
        records in prop::collection::vec(".{1,40}", 2..6),
        at in any::<prop::sample::Index>(),
        flip in 1u8..=255,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let ends = write(&path, &records);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        std::fs::write(&path, &bytes).unwrap();
        let last = ends[ends.len() - 2] as usize;
        match read::<String>(&path, FORMAT) {
            Ok(contents) => {
                prop_assert_eq!(&contents.records[..], &records[..contents.records.len()]);
                // The reserved bytes of the file head mean nothing.
                let unused = (12..16).contains(&at);
                prop_assert!(unused || (at >= last && contents.torn.is_some()));
            }
            Err(Error::Corrupt { .. } | Error::FileVersion { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn full_disk_keeps_records_pending() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut file, _) = RecordFile::<String>::open(&path, FORMAT).unwrap();
    // A device that is always full stands in for the disk.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let disk = std::mem::replace(&mut file.file, full);
    assert!(file.append(&"one".to_owned()).is_err());
    assert!(file.append(&"two".to_owned()).is_err());
    file.file = disk;
    file.append(&"three".to_owned()).unwrap();
    let contents: Contents<String> = read(&path, FORMAT).unwrap();
    assert_eq!(contents.records, ["one", "two", "three"]);
    assert_eq!(contents.torn, None);
}

#[test]
fn another_version_is_refused_with_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    write(&path, &["x".to_owned()]);
    let newer = RecordFormat {
        version: 4,
        ..FORMAT
    };
    let error = read::<String>(&path, newer).unwrap_err().to_string();
    assert!(
        error.contains("version 3") && error.contains("version 4"),
        "{error}"
    );
    let other = RecordFormat {
        magic: *b"FOVEAXXX",
        ..FORMAT
    };
    assert!(matches!(
        RecordFile::<String>::open(&path, other),
        Err(Error::Corrupt { .. })
    ));
}
