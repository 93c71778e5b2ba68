//! Frames from anyone: reading and decoding them neither panics nor allocates what they claim,
//! and whatever decodes also encodes to bytes that decode to the same.
//!
//! From `coordinator/`, with a nightly compiler and `cargo install cargo-fuzz`:
//! `cargo +nightly fuzz run decode -- -max_len=4096`. `coordinator/tests/golden/protocol-v5.txt` has a
//! frame of every kind; `xxd -r -p` makes a corpus of its lines.

#![no_main]

use fovea_coordinator::codec;
use fovea_coordinator::protocol::{Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    while let Ok(Some(body)) = codec::read_body(&mut stream, codec::MAX_HELLO) {
        again::<Request>(&body);
        again::<Reply>(&body);
    }
    again::<Request>(bytes);
    again::<Reply>(bytes);
    let _ = codec::decode_reply(bytes);
});

/// Bytes are compared, not messages: a NaN is not equal to itself.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(body: &[u8]) {
    let Ok(message) = codec::decode_body::<T>(body) else {
        return;
    };
    let Ok(first) = codec::encode(&message) else {
        return;
    };
    let second = codec::decode_body::<T>(&first[4..]).expect("what was encoded can be decoded");
    assert_eq!(first, codec::encode(&second).expect("and encoded again"));
}
