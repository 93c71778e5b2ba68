//! Judges the interface that a coordinator would bind, and whether the nodes agree about the time.

use serde::Serialize;

use super::Line;
use crate::interfaces::{self, Interface, LinkKind};

/// The offset of a node's clock against this node's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skew {
    /// Slurm's name of the node; this node is one of those asked.
    pub node: String,
    /// Seconds that its clock is ahead; negative when it is behind; none when the node did not answer.
    pub ahead_s: Option<f64>,
    /// Uncertainty of `ahead_s` in seconds: half of the time that asking took.
    pub within_s: f64,
}

/// The network, as this node sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NodeNetwork {
    /// One entry per address of an interface.
    pub interfaces: Vec<Interface>,
    /// The interface that the site file asks for.
    pub wish: Option<String>,
    /// Whether other nodes must reach this one: the allocation has several nodes.
    pub several_nodes: bool,
    /// Clocks of the allocation's nodes; none outside an allocation of several nodes.
    pub clocks: Option<Vec<Skew>>,
}

/// Offset in seconds above which logs of different nodes are hard to read together.
const FELT_S: f64 = 2.0;
/// Offset in seconds above which munge's credentials, and Slurm with them, come close to failing (at 300 s).
const HARMFUL_S: f64 = 60.0;

pub(super) fn judge(network: &NodeNetwork) -> Vec<Line> {
    let mut lines = vec![interface(network)];
    lines.extend(network.clocks.as_deref().map(clocks));
    lines
}

fn interface(network: &NodeNetwork) -> Line {
    const TOPIC: &str = "network";
    let choice = match interfaces::choose(&network.interfaces, network.wish.as_deref()) {
        Ok(choice) => choice,
        Err(error) => {
            let text = error.to_string();
            let (text, remedy) = text.split_once("\n  help: ").unwrap_or((&text, ""));
            return match (&network.wish, network.several_nodes) {
                (None, false) => {
                    Line::warn(TOPIC, format!("{text}: runs stay within this node"), remedy)
                }
                _ => Line::fail(TOPIC, text, remedy),
            };
        }
    };
    let mut others: Vec<&str> = network
        .interfaces
        .iter()
        .filter(|i| i.up && i.name != choice.name && i.kind != LinkKind::Loopback)
        .map(|i| i.name.as_str())
        .collect();
    others.dedup();
    let others = match others.len() {
        0 => String::new(),
        _ => format!("; not {}", others.join(", ")),
    };
    let text = format!(
        "{} {} ({}){others}",
        choice.name, choice.address, choice.reason
    );
    let down = network
        .interfaces
        .iter()
        .find(|i| i.kind == LinkKind::Infiniband && !i.up);
    match down {
        Some(ib) if network.wish.is_none() => Line::warn(
            TOPIC,
            format!("{text}; {} is InfiniBand but down", ib.name),
            "tell the administrator: gradients go over a slower network from this node",
        ),
        _ => Line::ok(TOPIC, text),
    }
}

fn clocks(clocks: &[Skew]) -> Line {
    const TOPIC: &str = "clocks";
    let mute: Vec<&str> = clocks
        .iter()
        .filter(|skew| skew.ahead_s.is_none())
        .map(|skew| skew.node.as_str())
        .collect();
    if !mute.is_empty() {
        return Line::warn(
            TOPIC,
            format!(
                "{} did not answer: a step could not be started there",
                mute.join(", ")
            ),
            "`srun -w NODE --overlap date` shows why; leave the node out with --exclude and tell the administrator",
        );
    }
    // The part of the offset that is certain.
    let sure = |skew: &Skew| (skew.ahead_s.unwrap_or(0.0).abs() - skew.within_s).max(0.0);
    let Some(worst) = clocks.iter().max_by(|a, b| sure(a).total_cmp(&sure(b))) else {
        return Line::ok(TOPIC, "one node, one clock");
    };
    let ahead = worst.ahead_s.unwrap_or(0.0);
    let way = if ahead < 0.0 { "behind" } else { "ahead" };
    let text = format!(
        "of {} nodes, {} is furthest off: {:.2} s {way} (within {:.2} s)",
        clocks.len(),
        worst.node,
        ahead.abs(),
        worst.within_s
    );
    let remedy = format!(
        "training keeps time by each node's own intervals, but Slurm's credentials and your logs do not: tell the administrator that time is not synchronised on {}",
        worst.node
    );
    match sure(worst) {
        s if s > HARMFUL_S => Line::fail(TOPIC, text, remedy),
        s if s > FELT_S => Line::warn(TOPIC, text, remedy),
        _ => Line::ok(TOPIC, text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fail, Ok as Good, Warn};
    use super::super::tests::about;
    use super::*;

    fn interface(name: &str, kind: LinkKind, up: bool) -> Interface {
        Interface {
            name: name.to_owned(),
            kind,
            up,
            speed_mbits: None,
            address: "10.0.0.3".parse().unwrap(),
            prefix: 16,
        }
    }

    fn network(interfaces: Vec<Interface>) -> NodeNetwork {
        NodeNetwork {
            interfaces,
            ..NodeNetwork::default()
        }
    }

    #[test]
    fn the_interface_is_named_with_those_that_are_not_taken() {
        let lines = judge(&network(vec![
            interface("lo", LinkKind::Loopback, true),
            interface("docker0", LinkKind::Bridge, true),
            interface("eth0", LinkKind::Ethernet, true),
        ]));
        let found = about(&lines, "network");
        assert_eq!(found, (Good, "eth0 10.0.0.3 (network card); not docker0"));
        let down = network(vec![
            interface("eth0", LinkKind::Ethernet, true),
            interface("ib0", LinkKind::Infiniband, false),
        ]);
        assert_eq!(about(&judge(&down), "network").0, Warn);
        let asked = NodeNetwork {
            wish: Some("eth0".to_owned()),
            ..down
        };
        assert_eq!(about(&judge(&asked), "network").0, Good);
    }

    #[test]
    fn no_way_out_is_red_where_others_must_come_in() {
        let alone = network(vec![interface("lo", LinkKind::Loopback, true)]);
        assert_eq!(about(&judge(&alone), "network").0, Warn);
        let needed = NodeNetwork {
            several_nodes: true,
            ..alone.clone()
        };
        assert_eq!(about(&judge(&needed), "network").0, Fail);
        let wished = NodeNetwork {
            wish: Some("ib0".to_owned()),
            ..alone
        };
        assert_eq!(about(&judge(&wished), "network").0, Fail);
    }

    #[test]
    fn a_skew_counts_as_far_as_it_is_sure() {
        let clocks = |skews: &[(Option<f64>, f64)]| {
            let skews = skews
                .iter()
                .enumerate()
                .map(|(i, (ahead_s, within_s))| Skew {
                    node: format!("n{i}"),
                    ahead_s: *ahead_s,
                    within_s: *within_s,
                });
            let network = NodeNetwork {
                clocks: Some(skews.collect()),
                ..network(vec![interface("eth0", LinkKind::Ethernet, true)])
            };
            let lines = judge(&network);
            let (verdict, text) = about(&lines, "clocks");
            (verdict, text.to_owned())
        };
        assert_eq!(clocks(&[(Some(0.01), 0.05), (Some(-0.02), 0.05)]).0, Good);
        assert_eq!(
            clocks(&[(Some(0.0), 0.05), (Some(-3.5), 4.0)]).0,
            Good,
            "asking took too long to know"
        );
        let (verdict, text) = clocks(&[(Some(0.0), 0.05), (Some(-3.5), 0.1)]);
        assert_eq!(
            (verdict, text.as_str()),
            (
                Warn,
                "of 2 nodes, n1 is furthest off: 3.50 s behind (within 0.10 s)"
            )
        );
        assert_eq!(clocks(&[(Some(120.0), 0.1)]).0, Fail);
        assert_eq!(clocks(&[(Some(0.0), 0.1), (None, 0.0)]).0, Warn);
        assert_eq!(clocks(&[]).0, Good);
        assert_eq!(
            judge(&network(vec![])).len(),
            1,
            "nothing about clocks outside a job"
        );
    }
}
