//! Slurm's notation for durations: `30`, `12:30`, `4:00:00`, `1-12`, `1-12:00:00`, `UNLIMITED`.
//!
//! Pure. One notation serves both directions: a typed `90` (`--time`) is minutes, and `squeue` prints `1:30` for
//! minutes and seconds. In both, minutes stand before the colon and seconds behind it.

use std::time::Duration;

/// Text that is no duration in Slurm's notation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no time: {what}\n  help: write minutes (90), hours:minutes:seconds (4:00:00), or days-hours (1-12)"
)]
pub struct Error {
    /// The text as it was given.
    pub text: String,
    /// What is wrong with the text.
    pub what: String,
}

/// Slurm's words for a missing or unknown limit.
const NO_TIME: [&str; 6] = ["UNLIMITED", "INFINITE", "INVALID", "NOT_SET", "N/A", "NONE"];

/// Longest duration that is accepted, in days: Slurm counts minutes in 32 bits.
const MAX_DAYS: u64 = 365_000;

/// Reads `MM`, `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM` and `D-HH:MM:SS`; `None` for words such as `UNLIMITED`, `INVALID`
/// and `NOT_SET`, which `squeue` prints when it knows no time.
pub fn parse(text: &str) -> Result<Option<Duration>, Error> {
    let error = |what: &str| Error {
        text: text.to_owned(),
        what: what.to_owned(),
    };
    let trimmed = text.trim();
    if NO_TIME
        .iter()
        .any(|word| word.eq_ignore_ascii_case(trimmed))
    {
        return Ok(None);
    }
    let (days, clock) = match trimmed.split_once('-') {
        Some((days, clock)) => (Some(number(days).map_err(|e| error(&e))?), clock),
        None => (None, trimmed),
    };
    let fields: Vec<u64> = clock
        .split(':')
        .map(number)
        .collect::<Result<_, String>>()
        .map_err(|e| error(&e))?;
    // Seconds in one unit of each field, by the number of fields and whether days stand before them.
    let units: &[u64] = match (days.is_some(), fields.len()) {
        (true, 1) => &[3600],
        (true, 2) => &[3600, 60],
        (_, 3) => &[3600, 60, 1],
        (false, 1) => &[60],
        (false, 2) => &[60, 1],
        _ => return Err(error("it has too many fields")),
    };
    // Only the first field may exceed its unit: 90 minutes, 36 hours.
    if fields
        .iter()
        .zip(units)
        .skip(1)
        .any(|(field, _)| *field > 59)
    {
        return Err(error("minutes and seconds behind a colon end at 59"));
    }
    if days.is_some() && fields[0] > 23 {
        return Err(error("hours behind days end at 23"));
    }
    let clock = fields
        .iter()
        .zip(units)
        .try_fold(0u64, |sum, (field, unit)| {
            field
                .checked_mul(*unit)
                .and_then(|seconds| sum.checked_add(seconds))
        });
    days.unwrap_or(0)
        .checked_mul(86_400)
        .and_then(|days| days.checked_add(clock?))
        .filter(|seconds| *seconds <= MAX_DAYS * 86_400)
        .map(|seconds| Some(Duration::from_secs(seconds)))
        .ok_or_else(|| error("it is longer than a thousand years"))
}

fn number(text: &str) -> Result<u64, String> {
    match text {
        "" => Err("a number is missing".to_owned()),
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map_err(|_| format!("{digits} is too large"))
        }
        other => Err(format!("{other:?} is no number")),
    }
}

/// Writes Slurm's notation: `4:00:00`, `1-12:00:00`, `UNLIMITED`. Fractions of a second are dropped.
pub fn format(time: Option<Duration>) -> String {
    let Some(time) = time else {
        return "UNLIMITED".to_owned();
    };
    let seconds = time.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match days {
        0 => format!("{hours}:{minutes:02}:{seconds:02}"),
        days => format!("{days}-{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form() {
        for (text, seconds) in [
            ("30", 1800),
            ("0", 0),
            ("90", 5400),
            ("12:30", 750),
            ("4:00:00", 14_400),
            ("36:00:00", 129_600),
            ("1-12", 129_600),
            ("1-12:30", 131_400),
            ("2-00:00:01", 172_801),
            (" 0:59 ", 59),
        ] {
            assert_eq!(
                parse(text),
                Ok(Some(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        for text in ["UNLIMITED", "INVALID", "NOT_SET", "unlimited", "INFINITE"] {
            assert_eq!(parse(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn what_is_no_time() {
        for (text, what) in [
            ("", "missing"),
            ("4h", "no number"),
            ("1:60", "end at 59"),
            ("1-24", "end at 23"),
            ("1:2:3:4", "too many"),
            ("1-", "missing"),
            ("-5", "missing"),
            ("+5", "no number"),
            ("1-1-1", "no number"),
            ("99999999999999999999", "too large"),
            ("999999999999999999", "longer"),
            ("18446744073709551615-0", "longer"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.what.contains(what), "{error}");
            assert!(error.to_string().contains("\n  help: "));
        }
    }

    #[test]
    fn printed() {
        let hours = |h: u64| Some(Duration::from_secs(3600 * h));
        assert_eq!(format(hours(4)), "4:00:00");
        assert_eq!(format(hours(36)), "1-12:00:00");
        assert_eq!(format(None), "UNLIMITED");
    }

    proptest! {
        #[test]
        fn printed_times_read_back(seconds in 0u64..10_000_000) {
            let time = Some(Duration::from_secs(seconds));
            prop_assert_eq!(parse(&format(time)), Ok(time));
        }
    }
}
