//! State dicts that PyTorch wrote (`tests/golden/pytorch.py`), files that mean harm, and files that are damaged.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use serde::Deserialize;

use super::super::{NamedTensor, TensorData};
use super::decode;

#[derive(Deserialize)]
struct Expected {
    shape: Vec<usize>,
    integers: bool,
    values: Vec<f64>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join("pytorch").join(name)).unwrap()
}

fn golden() -> BTreeMap<String, BTreeMap<String, Expected>> {
    let text = std::fs::read_to_string(folder().join("pytorch.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn values(tensor: &NamedTensor) -> (bool, Vec<f64>) {
    match &tensor.data {
        TensorData::F32(values) => (false, values.iter().map(|x| f64::from(*x)).collect()),
        TensorData::I64(values) => (true, values.iter().map(|x| *x as f64).collect()),
    }
}

#[test]
fn every_kind_of_state_dict_is_read_exactly() {
    let golden = golden();
    assert!(golden.len() > 12);
    for (name, expected) in &golden {
        if expected.is_empty() {
            continue;
        }
        let tensors = decode(&file(name)).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let names: Vec<&String> = tensors.iter().map(|tensor| &tensor.name).collect();
        assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, expected) in tensors.iter().zip(expected.values()) {
            assert_eq!(tensor.shape, expected.shape, "{name}: {}", tensor.name);
            let got = values(tensor);
            assert_eq!(
                got,
                (expected.integers, expected.values.clone()),
                "{name}: {}",
                tensor.name
            );
        }
    }
}

fn refusal(bytes: &[u8]) -> String {
    let error = decode(bytes).unwrap_err();
    assert!(!error.help.is_empty());
    error.what
}

#[test]
fn what_is_no_state_dict_is_refused_by_name() {
    let text = refusal(&file("module.pth"));
    assert!(
        text.contains("\"torch.nn.modules.container.Sequential\""),
        "{text}"
    );
    assert!(refusal(&file("script.pth")).contains("TorchScript"));
    // pickle.dumps of an object whose __reduce__ gives (os.system, ("echo owned",)), behind the older format's head.
    let mut evil = file("plain-old.pth");
    evil.truncate(evil.windows(2).position(|pair| pair == b".\x80").unwrap() + 1);
    let head = evil.len();
    assert!(head > 10, "the magic number");
    let program = b"\x80\x02cposix\nsystem\nX\x0a\x00\x00\x00echo owned\x85R.";
    evil.extend(program);
    let text = refusal(&evil);
    assert!(
        text.contains("\"posix.system\"") && text.contains("nothing of it was run"),
        "{text}"
    );
    for (program, words) in [
        (
            &b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."[..],
            "\"builtins.eval\"",
        ),
        (b"\x80\x02(S'x'\ni__main__\nX\n.", "instruction 0x53"),
        (b"\x80\x02h\x05.", "refers to a value"),
        (b"\x80\x02R.", "no value to work on"),
        (b"\x80\x02", "ends too early"),
    ] {
        evil.truncate(head);
        evil.extend(program);
        let text = refusal(&evil);
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(refusal(b"\x80\x02K\x01.").contains("not one that torch.save wrote"));
    assert!(refusal(b"PK\x03\x04").contains("damaged"));
}

/// One value at `from` replaced by `to`, everywhere.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes
        .windows(from.len())
        .position(|part| part == from)
        .unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn big_endian_files_and_tensors_outside_of_their_storage_are_refused() {
    let zip = file("plain.pth");
    assert!(refusal(&replaced(&zip, b"little", b"bigbig")).contains("big-endian"));
    let old = file("plain-old.pth");
    let key = b"little_endian";
    let at = old.windows(key.len()).position(|part| part == key).unwrap();
    let flag = at + old[at..].iter().position(|byte| *byte == 0x88).unwrap();
    let mut big = old.clone();
    big[flag] = 0x89;
    assert!(refusal(&big).contains("big-endian"));
    // The last storage lacks a byte.
    let text = refusal(&old[..old.len() - 1]);
    assert!(text.contains("cut off"), "{text}");
    // Shape (2, 3, 2, 2) grows to (2, 3, 9, 2).
    let grown = replaced(&old, b"(K\x02K\x03K\x02K\x02t", b"(K\x02K\x03K\x09K\x02t");
    assert!(refusal(&grown).contains("does not lie in its storage"));
    let huge = replaced(
        &old,
        b"(K\x02K\x03K\x02K\x02t",
        b"(K\x02K\x03M\xff\xffM\xff\xfft",
    );
    assert!(refusal(&huge).contains("more elements"));
}

/// A few bytes that make a list hold itself, and one that nests deeper than any stack: both are only refused.
#[test]
fn cycles_and_depth_cost_nothing() {
    let head = file("plain-old.pth");
    let at = |n: usize| {
        let mut ends = head
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| *pair == b".\x80");
        ends.nth(n).unwrap().0 + 1
    };
    let front = &head[..at(2)];
    let no_storages: &[u8] = b"\x80\x02].";
    let inside: &[u8] = b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.";
    let cycle = [front, inside, no_storages].concat();
    assert!(refusal(&cycle).contains("no tensors"));
    let mut deep = [front, b"\x80\x02)"].concat();
    deep.extend(std::iter::repeat_n(0x85, 200_000));
    deep.extend([&b"."[..], no_storages].concat());
    assert!(refusal(&deep).contains("no dict of tensors"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Bytes flipped, cut out, doubled or cut off: an answer or an error, never a panic.
    #[test]
    fn damaged_files_never_panic(
        which in 0usize..14,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..4, 1usize..40), 1..6),
    ) {
        let names: Vec<String> = golden().into_keys().collect();
        let mut bytes = file(&names[which % names.len()]);
        for (at, byte, how, len) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            let end = (at + len).min(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.drain(at..end)),
                2 => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => bytes.truncate(at.max(2)),
            }
        }
        if let Ok(tensors) = decode(&bytes) {
            for tensor in tensors {
                prop_assert_eq!(tensor.shape.iter().product::<usize>(), values(&tensor).1.len());
            }
        }
    }

    #[test]
    fn random_pickles_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = super::pickle::read(&bytes);
    }
}
