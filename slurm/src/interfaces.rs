//! The network interfaces of a node, and the one that other nodes should reach it by.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

/// What carries an interface's packets, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// InfiniBand or Omni-Path, as IP over it.
    Infiniband,
    /// A network card, or a bond or VLAN on cards.
    Ethernet,
    /// The way out of a container or virtual machine, without a network card of its own.
    Virtual,
    /// A link between this host and its containers or virtual machines: other nodes do not reach it.
    Bridge,
    /// The loopback device, which reaches this host alone.
    Loopback,
}

/// One address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// The interface's name ("ib0").
    pub name: String,
    /// What carries its packets.
    pub kind: LinkKind,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// Megabits per second, where the system knows.
    pub speed_mbits: Option<u32>,
    /// IPv4 or IPv6; an interface with several addresses is listed once for each.
    pub address: IpAddr,
    /// Leading bits of the address that are the same in its whole subnet.
    pub prefix: u8,
}

/// The address to listen on, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenChoice {
    /// The interface's name ("ib0").
    pub name: String,
    /// The interface's address that was chosen.
    pub address: IpAddr,
    /// Why, for the log: "InfiniBand", "network card, the fastest or first of 2", "as asked for".
    pub reason: String,
}

/// Why no address was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No interface that is up fits the wish.
    #[error(
        "no interface is up that `{wish}` describes; there {}\n  help: name one of these interfaces, one of their addresses, or a subnet like 10.1.0.0/16",
        there_are(there)
    )]
    NoSuch {
        /// The name, address or subnet that was asked for.
        wish: String,
        /// The usable interfaces, as "eth0 10.0.0.3"; link-local addresses are left out.
        there: Vec<String>,
    },
    /// Without a wish: only loopback and bridges are up.
    #[error(
        "no network interface is up that other nodes can reach; there {}\n  help: ask the administrator which interface connects the nodes, and name it",
        there_are(there)
    )]
    Nothing {
        /// The usable interfaces, as in [`Self::NoSuch`].
        there: Vec<String>,
    },
}

fn there_are(there: &[String]) -> String {
    if there.is_empty() {
        "are none".to_owned()
    } else {
        format!("are {}", there.join(", "))
    }
}

/// The address that other nodes should use. A `wish` names the interface: by name, address, or subnet such as
/// `10.1.0.0/16`. Without one, InfiniBand comes before network cards, the fastest first, IPv4 before IPv6; a bridge to
/// containers is never chosen.
pub fn choose(list: &[Interface], wish: Option<&str>) -> Result<ListenChoice, Error> {
    let usable = |i: &&Interface| i.up && !is_link_local(i.address);
    let there = || {
        let up = list.iter().filter(usable);
        up.map(|i| format!("{} {}", i.name, i.address)).collect()
    };
    if let Some(wish) = wish {
        return list
            .iter()
            .filter(usable)
            .filter(|i| fits(i, wish))
            .min_by_key(|i| i.address.is_ipv6())
            .map(|i| chosen(i, "as asked for".to_owned()))
            .ok_or_else(|| Error::NoSuch {
                wish: wish.to_owned(),
                there: there(),
            });
    }
    let best = list
        .iter()
        .filter(usable)
        .filter(|i| i.kind <= LinkKind::Virtual)
        // The first of equals: the system lists interfaces in the order of its cards.
        .min_by_key(|i| {
            let speed = u32::MAX - i.speed_mbits.unwrap_or(0);
            (i.kind, speed, i.address.is_ipv6())
        })
        .ok_or_else(|| Error::Nothing { there: there() })?;
    let mut names: Vec<&str> = list
        .iter()
        .filter(usable)
        .filter(|i| i.kind == best.kind)
        .map(|i| i.name.as_str())
        .collect();
    names.dedup();
    let what = match best.kind {
        LinkKind::Infiniband => "InfiniBand",
        LinkKind::Ethernet => "network card",
        _ => "virtual interface",
    };
    let reason = match names.len() {
        1 => what.to_owned(),
        n => format!("{what}, the fastest or first of {n}"),
    };
    Ok(chosen(best, reason))
}

fn chosen(interface: &Interface, reason: String) -> ListenChoice {
    ListenChoice {
        name: interface.name.clone(),
        address: interface.address,
        reason,
    }
}

fn fits(interface: &Interface, wish: &str) -> bool {
    if interface.name == wish {
        return true;
    }
    if let Some((net, bits)) = wish.split_once('/') {
        return match (net.parse::<IpAddr>(), bits.parse::<u32>()) {
            (Ok(net), Ok(bits)) => in_subnet(interface.address, net, bits),
            _ => false,
        };
    }
    wish.parse() == Ok(interface.address)
}

fn in_subnet(address: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            let differ = u64::from(a.to_bits() ^ n.to_bits());
            differ >> (32 - bits) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            let differ = a.to_bits() ^ n.to_bits();
            differ.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// The interfaces of this node, one entry per address.
pub fn list() -> io::Result<Vec<Interface>> {
    let found = if_addrs::get_if_addrs()?;
    Ok(found
        .into_iter()
        .map(|i| {
            let sys = Path::new("/sys/class/net").join(&i.name);
            let (address, prefix) = match &i.addr {
                if_addrs::IfAddr::V4(a) => (IpAddr::V4(a.ip), a.prefixlen),
                if_addrs::IfAddr::V6(a) => (IpAddr::V6(a.ip), a.prefixlen),
            };
            Interface {
                kind: kind(&i.name, &read(&sys)),
                up: i.is_oper_up(),
                speed_mbits: number(&sys.join("speed")).and_then(|s| u32::try_from(s).ok()),
                name: i.name,
                address,
                prefix,
            }
        })
        .collect())
}

/// The facts of an interface that decide its kind, from /sys/class/net.
#[derive(Clone, Copy, Debug, Default)]
struct Sys {
    /// Hardware type: an `ARPHRD_*` of linux/if_arp.h; 0 when it cannot be read.
    arp_type: i64,
    /// Whether a hardware device stands behind it.
    device: bool,
    /// Whether it is a bond, which joins several network cards.
    bond: bool,
    /// Whether it is a bridge.
    bridge: bool,
    /// Whether an interface with a hardware device lies below it, as below a VLAN or a bridge.
    over_device: bool,
}

fn read(sys: &Path) -> Sys {
    let has_device = |dir: &Path| dir.join("device").exists();
    let below = fs::read_dir(sys).into_iter().flatten().flatten();
    let lower = |name: &std::ffi::OsStr| {
        name.to_str()
            .and_then(|name| name.strip_prefix("lower_"))
            .is_some_and(|lower| has_device(&sys.with_file_name(lower)))
    };
    Sys {
        arp_type: number(&sys.join("type")).unwrap_or(0),
        device: has_device(sys),
        bond: sys.join("bonding").exists(),
        bridge: sys.join("bridge").exists(),
        over_device: below.into_iter().any(|item| lower(&item.file_name())),
    }
}

fn number(path: &Path) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Prefixes of the names that container and virtual machine software gives to the host's side of a link.
const INNER: [&str; 13] = [
    "docker", "br-", "virbr", "veth", "cni", "flannel", "cali", "podman", "lxcbr", "lxdbr",
    "vmnet", "vnet", "tap",
];

fn kind(name: &str, sys: &Sys) -> LinkKind {
    const LOOPBACK: i64 = 772;
    const INFINIBAND: i64 = 32;
    match sys {
        Sys {
            arp_type: LOOPBACK, ..
        } => LinkKind::Loopback,
        Sys {
            arp_type: INFINIBAND,
            ..
        } => LinkKind::Infiniband,
        Sys { device: true, .. }
        | Sys { bond: true, .. }
        | Sys {
            over_device: true, ..
        } => LinkKind::Ethernet,
        Sys { bridge: true, .. } => LinkKind::Bridge,
        _ if INNER.iter().any(|prefix| name.starts_with(prefix)) => LinkKind::Bridge,
        _ => LinkKind::Virtual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, kind: LinkKind, address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            kind,
            up: true,
            speed_mbits: None,
            address: address.parse().unwrap(),
            prefix: 24,
        }
    }

    fn node() -> Vec<Interface> {
        vec![
            interface("lo", LinkKind::Loopback, "127.0.0.1"),
            interface("docker0", LinkKind::Bridge, "172.17.0.1"),
            interface("eno1", LinkKind::Ethernet, "fe80::1"),
            interface("eno1", LinkKind::Ethernet, "fd00::3"),
            interface("eno1", LinkKind::Ethernet, "10.0.0.3"),
            Interface {
                speed_mbits: Some(100_000),
                ..interface("ens2", LinkKind::Ethernet, "10.2.0.3")
            },
            interface("ib0", LinkKind::Infiniband, "10.1.0.3"),
        ]
    }

    fn name(list: &[Interface], wish: Option<&str>) -> String {
        let choice = choose(list, wish).unwrap();
        format!("{} {}", choice.name, choice.address)
    }

    #[test]
    fn infiniband_then_the_fastest_card_and_never_a_bridge() {
        let mut list = node();
        assert_eq!(name(&list, None), "ib0 10.1.0.3");
        list[6].up = false;
        assert_eq!(name(&list, None), "ens2 10.2.0.3");
        let reason = choose(&list, None).unwrap().reason;
        assert_eq!(reason, "network card, the fastest or first of 2");
        list[5].up = false;
        assert_eq!(
            name(&list, None),
            "eno1 10.0.0.3",
            "IPv4 first, never link-local"
        );
        list.truncate(4);
        assert_eq!(name(&list, None), "eno1 fd00::3");
        list.truncate(3);
        let text = choose(&list, None).unwrap_err().to_string();
        assert!(text.starts_with("no network interface is up"), "{text}");
        assert!(
            text.contains("there are lo 127.0.0.1, docker0 172.17.0.1\n  help: "),
            "{text}"
        );
        list.push(interface("eth0", LinkKind::Virtual, "10.9.0.2"));
        assert_eq!(name(&list, None), "eth0 10.9.0.2", "a container's own");
    }

    #[test]
    fn a_wish_is_a_name_an_address_or_a_subnet() {
        let list = node();
        assert_eq!(name(&list, Some("eno1")), "eno1 10.0.0.3");
        assert_eq!(name(&list, Some("10.2.0.3")), "ens2 10.2.0.3");
        assert_eq!(name(&list, Some("10.1.0.0/16")), "ib0 10.1.0.3");
        assert_eq!(name(&list, Some("fd00::/8")), "eno1 fd00::3");
        assert_eq!(name(&list, Some("0.0.0.0/0")), "lo 127.0.0.1");
        assert_eq!(
            name(&list, Some("lo")),
            "lo 127.0.0.1",
            "who asks for it gets it"
        );
        for wish in ["ib1", "10.5.0.0/16", "10.0.0.0/33", "x/y", "fe80::1"] {
            let text = choose(&list, Some(wish)).unwrap_err().to_string();
            assert!(
                text.contains(&format!("`{wish}`")) && text.contains("ib0 10.1.0.3"),
                "{text}"
            );
        }
    }

    #[test]
    fn kinds_are_told_by_what_stands_behind() {
        let sys = Sys {
            arp_type: 1,
            ..Sys::default()
        };
        assert_eq!(
            kind(
                "lo",
                &Sys {
                    arp_type: 772,
                    ..sys
                }
            ),
            LinkKind::Loopback
        );
        assert_eq!(
            kind(
                "ibp1s0",
                &Sys {
                    arp_type: 32,
                    device: true,
                    ..sys
                }
            ),
            LinkKind::Infiniband
        );
        assert_eq!(
            kind(
                "eth0",
                &Sys {
                    device: true,
                    ..sys
                }
            ),
            LinkKind::Ethernet
        );
        assert_eq!(
            kind("bond0", &Sys { bond: true, ..sys }),
            LinkKind::Ethernet
        );
        let bridged = Sys {
            bridge: true,
            over_device: true,
            ..sys
        };
        assert_eq!(
            kind("br0", &bridged),
            LinkKind::Ethernet,
            "the node's only way out"
        );
        assert_eq!(
            kind(
                "br0",
                &Sys {
                    bridge: true,
                    ..sys
                }
            ),
            LinkKind::Bridge
        );
        assert_eq!(kind("veth12ab", &sys), LinkKind::Bridge);
        assert_eq!(kind("eth0", &sys), LinkKind::Virtual);
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let list = list().unwrap();
        assert!(
            list.iter()
                .any(|i| i.kind == LinkKind::Loopback && i.address.is_loopback()),
            "{list:?}"
        );
    }
}
