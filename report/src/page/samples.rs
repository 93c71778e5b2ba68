//! Sample predictions on the page.

use fovea_task::Target;
use maud::{Markup, html};

use super::super::Result;
use super::super::files::data_url;
use super::super::palette::hex;
use super::super::pictures::{HEAT_STOPS, Panels, Scene};

/// `None` when there are no scenes.
pub(super) fn section(scenes: &[Scene], panels: &[Panels]) -> Result<Option<Markup>> {
    let Some(first) = scenes.first() else {
        return Ok(None);
    };
    let figures = scenes
        .iter()
        .zip(panels)
        .map(|(s, p)| figure(s, p))
        .collect::<Result<Vec<_>>>()?;
    Ok(Some(html! {
        p .lead {
            "Validation images from the best predicted to the worst, by wrong class bits per cell. Each class has its own corner of a cell; cells without a frame have none, black cells are not looked at."
        }
        (legend(&first.target))
        @for figure in figures { (figure) }
    }))
}

fn legend(target: &Target) -> Markup {
    let stops: Vec<String> = HEAT_STOPS.iter().map(|&stop| hex(stop)).collect();
    html! {
        ul .legend .lesions {
            @for class in &target.classes {
                li { span .mark .disc style=(format!("--c:{}", hex(class.colour))) {} (class.name) }
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
            @for (target, image) in &scene.image {
                dl .image {
                    dt { "Whole image" @if target.name != target.level.name() { " (" (target.name) ")" } }
                    dd { "true: " (target.describe(image.label)) }
                    dd { "predicted: " (target.describe(image.predicted)) }
                    @for (class, probability) in target.classes.iter().zip(&image.probabilities) {
                        dd .probability {
                            (class.name) " " (format!("{probability:.2}"))
                            span .meter aria-hidden="true" {
                                span .bar style=(format!("width:{:.0}%", probability.clamp(0.0, 1.0) * 100.0)) {}
                            }
                        }
                    }
                }
            }
        }
    })
}
