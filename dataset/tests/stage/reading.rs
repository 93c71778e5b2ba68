//! Training that begins on the original and moves on to the copy.

use std::fs;
use std::path::Path;

use fovea_dataset::stage::{UnstageOutcome, unstage};
use fovea_dataset::{Dataset, ProgressListener};

use super::{Place, SHARDS, overwrite, shard};

/// Everything that a dataset gives.
fn content(data: &Dataset) -> Vec<Vec<u8>> {
    (0..data.len())
        .flat_map(|i| {
            let areas = data.areas(i).iter().flat_map(|a| a.to_le_bytes()).collect();
            let mask = data.mask(i).unwrap().to_vec();
            [
                data.image(i).data.to_vec(),
                mask,
                data.black(i).to_vec(),
                areas,
            ]
        })
        .collect()
}

/// Makes every byte of a dataset's tensors wrong, in the files that are mapped already.
fn poison(dir: &Path) {
    use std::os::unix::fs::FileExt;

    for number in 0..SHARDS {
        let path = shard(dir, number);
        let bytes: Vec<u8> = fs::read(&path).unwrap().iter().map(|b| !b).collect();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&bytes[1000..], 1000).unwrap();
    }
}

/// Reads the dataset between the shards of a copy.
struct Reader<'a> {
    data: &'a Dataset,
    expected: &'a [Vec<u8>],
}

impl ProgressListener for Reader<'_> {
    fn start(&self, _total: u64) {
        assert_eq!(self.data.look_for_copies(), 0);
    }

    fn advance(&self, _n: u64) {
        self.data.look_for_copies();
        assert!(content(self.data) == self.expected);
    }

    fn finish(&self) {
        assert_eq!(self.data.look_for_copies(), SHARDS);
    }
}

#[test]
fn reading_changes_over_to_the_copy_while_it_is_made() {
    let place = Place::new();
    let data = Dataset::open(&place.data).unwrap();
    let expected = content(&data);
    data.prefer(&[place.root.path().join("elsewhere"), place.scratch.clone()]);
    let (kept, early) = (data.image(7), expected[4 * 7].clone());
    let reader = Reader {
        data: &data,
        expected: &expected,
    };
    fovea_dataset::stage::stage(&place.data, &place.scratch, &super::OPTIONS, &reader).unwrap();
    assert!(kept.data == early, "a slice of the original stays valid");
    // Whoever still read the original would see it now.
    poison(&place.data);
    assert!(
        kept.data != early,
        "the poison is seen by those who read the original"
    );
    assert!(content(&data) == expected);
}

#[test]
fn readers_in_other_threads_see_the_same_bytes_throughout() {
    let place = Place::new();
    let data = Dataset::open(&place.data).unwrap();
    let expected = content(&data);
    data.prefer(std::slice::from_ref(&place.scratch));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    while data.look_for_copies() < SHARDS {
                        assert!(content(&data) == expected);
                    }
                })
            })
            .collect();
        place.stage().unwrap();
        for reader in readers {
            reader.join().unwrap();
        }
    });
    poison(&place.data);
    assert!(content(&data) == expected);
}

#[test]
fn readers_find_the_copy_by_themselves() {
    let place = Place::new();
    let data = Dataset::open(&place.data).unwrap();
    let expected = content(&data);
    place.stage().unwrap();
    data.prefer(std::slice::from_ref(&place.scratch));
    // The first access to each shard looks for its copy.
    assert!(content(&data) == expected);
    poison(&place.data);
    assert!(content(&data) == expected);
}

#[test]
fn a_copy_that_somebody_wrote_to_is_not_read() {
    let place = Place::new();
    place.stage().unwrap();
    let data = Dataset::open(&place.data).unwrap();
    let expected = content(&data);
    overwrite(&shard(&place.copy(), 2), |bytes| bytes[5_000] ^= 1);
    overwrite(&shard(&place.copy(), 5), |bytes| bytes.truncate(5_000));
    data.prefer(std::slice::from_ref(&place.scratch));
    assert_eq!(data.look_for_copies(), SHARDS - 2);
    assert!(content(&data) == expected);
    // Staged again, they are.
    assert_eq!(place.stage().unwrap(), place.staged(2));
    assert_eq!(data.look_for_copies(), SHARDS);
    assert!(content(&data) == expected);
}

#[test]
fn without_a_preference_a_copy_is_not_read() {
    let place = Place::new();
    place.stage().unwrap();
    let data = Dataset::open(&place.data).unwrap();
    assert_eq!(data.look_for_copies(), 0);
    let before = content(&data);
    poison(&place.data);
    assert!(content(&data) != before);
}

#[test]
fn a_copy_in_use_is_not_removed() {
    let place = Place::new();
    place.stage().unwrap();
    let data = Dataset::open(&place.data).unwrap();
    data.prefer(std::slice::from_ref(&place.scratch));
    data.look_for_copies();
    assert_eq!(
        unstage(&place.data, &place.scratch).unwrap(),
        UnstageOutcome::InUse
    );
    place.assert_whole();
    drop(data);
    assert_eq!(
        unstage(&place.data, &place.scratch).unwrap(),
        UnstageOutcome::Removed
    );
}
