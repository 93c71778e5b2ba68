//! Numbers from PyTorch and torchvision: `tests/golden/kernels.txt`, which `kernels.py` in that folder writes.

const TEXT: &str = include_str!("../../tests/golden/kernels.txt");

/// The values of a line, in f64.
pub(crate) fn values(name: &str) -> Vec<f64> {
    let line = TEXT
        .lines()
        .find(|line| line.split(' ').next() == Some(name))
        .unwrap_or_else(|| panic!("no line {name}"));
    line.split(' ')
        .skip(1)
        .map(|value| {
            value
                .parse()
                .unwrap_or_else(|e| panic!("{name}: {value}: {e}"))
        })
        .collect()
}

/// The values of a line, in f32.
pub(crate) fn values_f32(name: &str) -> Vec<f32> {
    values(name).iter().map(|&v| v as f32).collect()
}

/// The picture that `kernels.py` also makes, `[height, width, 3]`.
pub(crate) fn picture(height: usize, width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                out.push(((y * 7 + x * 13 + c * 29 + x * y % 31 * 5) % 256) as u8);
            }
        }
    }
    out
}

/// Fails unless every element is within `tolerance` of the wanted one.
pub(crate) fn assert_close(name: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance, "{name}[{i}]: {got} instead of {want}");
    }
}

/// Runs `f` in a rayon pool of its own with this many threads.
pub(crate) fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool of a few threads")
        .install(f)
}
