//! Random configurations survive every way of writing them.

use proptest::prelude::*;
use proptest::sample::select;

use super::super::Config;
use super::super::keys::{Bound, KEYS, Key, Leaf, ValueKind, ValueRange};

/// A number in the range: anywhere, near zero on a logarithmic scale, or at an end.
fn real(range: ValueRange) -> BoxedStrategy<f32> {
    let ValueRange::Real(min, max) = range else {
        panic!("a number without bounds")
    };
    let end = |bound: Bound| match bound {
        Bound::Closed(end) | Bound::Open(end) => end,
    };
    let (low, high) = (end(min), end(max));
    prop_oneof![
        low..=high,
        (-40.0f32..0.0).prop_map(move |power| low + (high - low) * power.exp2()),
        Just(low),
        Just(high),
    ]
    .prop_filter("open end", move |value| range.contains(&Leaf::Real(*value)))
    .boxed()
}

fn leaf(key: &Key) -> BoxedStrategy<Leaf> {
    let word =
        |known: &'static [&'static str]| select(known).prop_map(|word| Leaf::Text(word.into()));
    match ((key.kind)(&Config::default()), key.range) {
        (ValueKind::Bool, _) => any::<bool>().prop_map(Leaf::Bool).boxed(),
        (ValueKind::Int, ValueRange::Int(min, max)) => {
            prop_oneof![min..=max, min..=max.min(min + 9), Just(min), Just(max)]
                .prop_map(Leaf::Int)
                .boxed()
        }
        (ValueKind::Real, range) => real(range).prop_map(Leaf::Real).boxed(),
        (ValueKind::Text, _) => prop_oneof![
            any::<String>(),
            "[ -~]{0,12}",
            "['\"\\\\\n\r\t#=\\[\\]]{0,8}"
        ]
        .prop_map(Leaf::Text)
        .boxed(),
        (ValueKind::Choice(known), _) => word(known).boxed(),
        (ValueKind::ChoiceOrWeights(known), range) => {
            let number = || real(range);
            let weights = proptest::collection::vec(number(), 1..8);
            prop_oneof![word(known), weights.prop_map(Leaf::Weights)].boxed()
        }
        (ValueKind::Int, range) => panic!("{}: {range:?}", key.path()),
    }
}

fn config() -> impl Strategy<Value = Config> {
    let leaves: Vec<_> = KEYS.iter().map(leaf).collect();
    leaves.prop_map(|leaves| {
        let mut config = Config::default();
        for (key, leaf) in KEYS.iter().zip(leaves) {
            assert!((key.set)(&mut config, leaf), "{}", key.path());
        }
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn through_documented_toml(config in config()) {
        let text = config.to_toml_documented();
        prop_assert_eq!(&Config::from_toml_str(&text, "printed").unwrap(), &config);
        // And any TOML reader agrees about the values, with serde alone.
        prop_assert_eq!(&toml::from_str::<Config>(&text).unwrap(), &config);
    }

    #[test]
    fn through_set(config in config()) {
        let mut copy = Config::default();
        for key in KEYS {
            copy.set(&format!("{}={}", key.path(), (key.get)(&config))).unwrap();
        }
        prop_assert_eq!(copy, config);
    }

    #[test]
    fn through_json(config in config()) {
        let text = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn equal_hashes_exactly_without_differences(a in config(), b in config(), mix in any::<u64>()) {
        // `c` takes some keys of `b`, so that it shares a part with `a`.
        let mut c = a.clone();
        for (index, key) in KEYS.iter().enumerate().filter(|(index, _)| mix >> (index % 64) & 1 == 1) {
            if index % 3 == 0 || !key.changes_result {
                (key.set)(&mut c, (key.get)(&b));
            }
        }
        prop_assert_eq!(a.blake3() == c.blake3(), a.differences(&c).is_empty());
        prop_assert_eq!(a.clone().blake3(), a.blake3());
    }

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), tail in "[a-z_.=\\[\\]\"'0-9e#\n -]{0,60}") {
        let _ = Config::from_toml_str(&text, "random");
        let _ = Config::from_toml_str(&format!("[train]\n{tail}"), "random");
        let _ = Config::default().set(&text);
        let _ = Config::default().set(&format!("data.{tail}"));
    }
}

#[test]
fn every_line_of_the_printed_form_is_short_and_explained() {
    let text = Config::default().to_toml_documented();
    for line in text.lines() {
        assert!(line.chars().count() <= 96, "{line}");
    }
    for key in KEYS {
        let line = format!("\n{} = ", key.name);
        assert!(text.contains(&line), "{}", key.path());
    }
    let comments = text
        .lines()
        .filter(|line| line.contains("; default "))
        .count();
    assert_eq!(comments, KEYS.len());
}
