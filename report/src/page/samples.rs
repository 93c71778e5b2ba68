//! Sample predictions on the page.

use fovea_dataset::{CLASS_COLOURS, CLASSES, label_names};
use maud::{Markup, html};

use super::super::Result;
use super::super::files::data_url;
use super::super::palette::hex;
use super::super::pictures::{HEAT_STOPS, Panels, Scene};

/// `None` when there are no scenes.
pub(super) fn section(scenes: &[Scene], panels: &[Panels]) -> Result<Option<Markup>> {
    if scenes.is_empty() {
        return Ok(None);
    }
    let figures = scenes
        .iter()
        .zip(panels)
        .map(|(s, p)| figure(s, p))
        .collect::<Result<Vec<_>>>()?;
    Ok(Some(html! {
        p .lead {
            "Validation images from the best predicted to the worst, by wrong class bits per cell. Each class has its own corner of a cell; cells without a frame have none, black cells are not looked at."
        }
        (legend())
        @for figure in figures { (figure) }
    }))
}

fn legend() -> Markup {
    let colour = |class: usize| format!("--c:{}", hex(CLASS_COLOURS[class]));
    let stops: Vec<String> = HEAT_STOPS.iter().map(|&stop| hex(stop)).collect();
    html! {
        ul .legend .lesions {
            @for (class, name) in CLASSES.iter().enumerate() {
                li { span .mark .disc style=(colour(class)) {} (name) }
            }
            li .gap { span .mark .disc {} "found" }
            li { span .mark .square {} "false alarm" }
            li { span .mark .ring {} "missed" }
            li .gap { "0" span .heat style=(format!("background:linear-gradient(90deg,{})", stops.join(","))) {} "1 probability" }
        }
    }
}

fn figure(scene: &Scene, panels: &Panels) -> Result<Markup> {
    let alts = [
        (
            format!("Photograph {} with the true lesions", scene.id),
            "Truth",
            data_url(&panels.truth)?,
        ),
        (
            format!(
                "Photograph {} with the predicted classes per cell",
                scene.id
            ),
            "Prediction",
            data_url(&panels.prediction)?,
        ),
        (
            format!("Highest probability of any class per cell of {}", scene.id),
            "Highest probability",
            data_url(&panels.heat)?,
        ),
    ];
    Ok(html! {
        figure .card .full .sample {
            figcaption {
                (scene.id)
                span .quiet { (format!("{:.1} % of class bits wrong", scene.error * 100.0)) }
            }
            div .panels {
                @for (alt, name, url) in alts {
                    div { img src=(url) alt=(alt) width="600" height="600" loading="lazy"; p { (name) } }
                }
            }
            @if let Some(image) = scene.image {
                dl .image {
                    dt { "Whole image" }
                    dd { "true: " (label_names(image.label)) }
                    dd { "predicted: " (label_names(image.predicted(scene.threshold()))) }
                    @for (class, name) in CLASSES.iter().enumerate() {
                        dd .probability {
                            (name) " " (format!("{:.2}", image.probs[class]))
                            span .meter aria-hidden="true" {
                                span .bar style=(format!("width:{:.0}%", image.probs[class].clamp(0.0, 1.0) * 100.0)) {}
                            }
                        }
                    }
                }
            }
        }
    })
}
