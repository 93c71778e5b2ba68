//! Which machine this is.

/// This machine's host name.
pub fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// This machine: `name/boot-id`. The boot id tells two machines of one name apart, and containers of
/// one machine are one machine.
pub fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!("{}/{}", hostname(), boot.trim())
}

/// Whether two [`machine`]s are one. Without a boot id the name has to do.
pub fn same_machine(one: &str, other: &str) -> bool {
    let key = |id: &str| match id.rsplit_once('/') {
        Some((_, boot)) if !boot.is_empty() => boot.to_owned(),
        _ => id.to_owned(),
    };
    key(one) == key(other)
}
