//! The colours of the report, by meaning. Pictures take the light ones; the page has both and lets
//! the reader's system choose.

/// What a stroke, fill or text stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// Headings and the numbers that count.
    Text,
    /// Labels that should not compete with the data.
    Muted,
    /// The line along the bottom of a plot.
    Axis,
    /// Lines of the grid behind the data.
    Grid,
    /// The background of a plot.
    Paper,
    /// Band of scores that are not good enough.
    Poor,
    /// Band of middling scores.
    Middle,
    /// Band of good scores.
    Good,
    /// Curves over the validation split.
    Val,
    /// Curves over the training split.
    Train,
    /// Everything that marks the best epoch.
    Best,
    /// What a constant prediction reaches.
    Constant,
    /// A class, by index; the fifth and later ones take the colours of ranks.
    Class(usize),
    /// A rank; colours repeat after [`RANK_COLOURS`].
    Rank(usize),
    /// A confusion cell that is right; the shade in eighths, 0..=8.
    Right(u8),
    /// A confusion cell that is wrong; the shade in eighths, 0..=8.
    Wrong(u8),
}

/// Distinct colours for ranks.
pub(super) const RANK_COLOURS: usize = 8;

/// Number of shades of a confusion cell beyond the palest.
pub(super) const SHADES: u8 = 8;

type RgbBytes = [u8; 3];

// Darker relatives of the hues that outline lesions in pictures (cyan, green, magenta, white), apart
// from each other in lightness too, so that they stay different without colour vision.
const CLASSES: [(RgbBytes, RgbBytes); 4] = [
    ([0x08, 0x75, 0x99], [0x22, 0xd3, 0xee]),
    ([0x5a, 0xa0, 0x1f], [0x84, 0xcc, 0x16]),
    ([0xc0, 0x26, 0xd3], [0xe8, 0x79, 0xf9]),
    ([0x33, 0x41, 0x55], [0xe2, 0xe8, 0xf0]),
];

const RANKS: [(RgbBytes, RgbBytes); RANK_COLOURS] = [
    ([0x25, 0x63, 0xeb], [0x60, 0xa5, 0xfa]),
    ([0xea, 0x58, 0x0c], [0xfb, 0x92, 0x3c]),
    ([0x0d, 0x94, 0x88], [0x2d, 0xd4, 0xbf]),
    ([0x7c, 0x3a, 0xed], [0xa7, 0x8b, 0xfa]),
    ([0xdb, 0x27, 0x77], [0xf4, 0x72, 0xb6]),
    ([0x65, 0x8a, 0x0f], [0xa3, 0xe6, 0x35]),
    ([0x92, 0x40, 0x0e], [0xd9, 0x77, 0x06]),
    ([0x47, 0x55, 0x69], [0x94, 0xa3, 0xb8]),
];

impl Ink {
    /// Every ink there is, for the style sheet.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        use Ink::*;
        let plain = [
            Text, Muted, Axis, Grid, Paper, Poor, Middle, Good, Val, Train, Best, Constant,
        ];
        plain
            .into_iter()
            .chain((0..CLASSES.len()).map(Class))
            .chain((0..RANK_COLOURS).map(Rank))
            .chain((0..=SHADES).map(Right))
            .chain((0..=SHADES).map(Wrong))
    }

    /// The colour on a light page and on a dark one.
    fn pair(self) -> (RgbBytes, RgbBytes) {
        match self {
            Self::Text => ([0x1b, 0x25, 0x33], [0xe6, 0xea, 0xf0]),
            Self::Muted => ([0x66, 0x70, 0x80], [0x94, 0xa0, 0xb3]),
            Self::Axis => ([0xa8, 0xb0, 0xbd], [0x55, 0x60, 0x70]),
            Self::Grid => ([0xe3, 0xe7, 0xec], [0x2c, 0x36, 0x45]),
            Self::Paper => ([0xff, 0xff, 0xff], [0x18, 0x20, 0x2c]),
            Self::Poor => ([0xfb, 0xed, 0xec], [0x2e, 0x22, 0x2a]),
            Self::Middle => ([0xfd, 0xf6, 0xe3], [0x2d, 0x2a, 0x24]),
            Self::Good => ([0xea, 0xf6, 0xee], [0x1b, 0x2e, 0x2c]),
            Self::Val => ([0x1d, 0x4e, 0xd8], [0x7a, 0xa8, 0xff]),
            Self::Train => ([0x8a, 0x97, 0xab], [0x7d, 0x8a, 0x9e]),
            Self::Best => ([0xb4, 0x53, 0x09], [0xf5, 0xa5, 0x24]),
            Self::Constant => ([0x66, 0x70, 0x80], [0x94, 0xa0, 0xb3]),
            Self::Class(class) => match CLASSES.get(class) {
                Some(&pair) => pair,
                None => RANKS[(class - CLASSES.len()) % RANK_COLOURS],
            },
            Self::Rank(rank) => RANKS[rank % RANK_COLOURS],
            Self::Right(shade) => (
                mix([0xf3, 0xf8, 0xf5], [0x86, 0xc9, 0xa3], shade),
                mix([0x1d, 0x29, 0x32], [0x1f, 0x6f, 0x52], shade),
            ),
            Self::Wrong(shade) => (
                mix([0xfc, 0xf6, 0xf4], [0xef, 0xa3, 0x8f], shade),
                mix([0x24, 0x26, 0x31], [0x93, 0x3f, 0x33], shade),
            ),
        }
    }

    /// The colour on white.
    pub(super) fn rgb(self) -> RgbBytes {
        self.pair().0
    }

    /// Name of the style sheet variable (without the leading dashes).
    pub(super) fn name(self) -> String {
        match self {
            Self::Class(class) => match class.checked_sub(CLASSES.len()) {
                None => format!("class-{class}"),
                Some(more) => Self::Rank(more).name(),
            },
            Self::Rank(rank) => format!("rank-{}", rank % RANK_COLOURS),
            Self::Right(shade) => format!("right-{shade}"),
            Self::Wrong(shade) => format!("wrong-{shade}"),
            plain => format!("{plain:?}").to_lowercase(),
        }
    }
}

fn mix(from: RgbBytes, to: RgbBytes, shade: u8) -> RgbBytes {
    let part = f64::from(shade.min(SHADES)) / f64::from(SHADES);
    std::array::from_fn(|i| {
        (f64::from(from[i]) + (f64::from(to[i]) - f64::from(from[i])) * part).round() as u8
    })
}

/// A colour as style sheets spell it, `#rrggbb`.
pub(super) fn hex([r, g, b]: RgbBytes) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// The variables of both colour schemes as a style sheet.
pub(super) fn style_sheet() -> String {
    let variables = |pick: fn((RgbBytes, RgbBytes)) -> RgbBytes| -> String {
        Ink::all()
            .map(|ink| format!("--{}:{};", ink.name(), hex(pick(ink.pair()))))
            .collect()
    };
    let fills: String = Ink::all()
        .map(|ink| {
            format!(
                ".f-{0}{{fill:var(--{0})}}.s-{0}{{stroke:var(--{0})}}",
                ink.name()
            )
        })
        .collect();
    format!(
        ":root{{{}}}@media(prefers-color-scheme:dark){{:root{{{}}}}}{fills}",
        variables(|p| p.0),
        variables(|p| p.1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WCAG 2.1 contrast ratio.
    fn contrast(a: RgbBytes, b: RgbBytes) -> f64 {
        let luminance = |rgb: RgbBytes| {
            let linear = rgb.map(|v| {
                let v = f64::from(v) / 255.0;
                if v <= 0.04045 {
                    v / 12.92
                } else {
                    ((v + 0.055) / 1.055).powf(2.4)
                }
            });
            0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        };
        let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
        if a > b { a / b } else { b / a }
    }

    #[test]
    fn text_is_readable_and_lines_are_visible() {
        let (light, dark) = Ink::Paper.pair();
        for ink in [Ink::Text, Ink::Muted] {
            assert!(contrast(ink.pair().0, light) >= 4.5, "{ink:?}");
            assert!(contrast(ink.pair().1, dark) >= 4.5, "{ink:?}");
        }
        let lines = (0..4)
            .map(Ink::Class)
            .chain((0..8).map(Ink::Rank))
            .chain([Ink::Val, Ink::Best]);
        for ink in lines {
            assert!(contrast(ink.pair().0, light) >= 3.0, "{ink:?}");
            assert!(contrast(ink.pair().1, dark) >= 3.0, "{ink:?}");
        }
    }

    #[test]
    fn every_name_is_once_in_the_style_sheet() {
        let sheet = style_sheet();
        for ink in Ink::all() {
            assert_eq!(
                sheet.matches(&format!(".f-{}{{", ink.name())).count(),
                1,
                "{ink:?}"
            );
        }
    }
}
