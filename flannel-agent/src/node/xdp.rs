//! Whether XDP is used on the external interface, and how.

use std::{
    fs,
    path::{Path, PathBuf},
};

use flannel_common::{layout::UnknownVtep, path::Hook};
use tracing::info;

use crate::plan::Xdp;

/// `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native on a card, if its driver is known not to lose by it; else not at all.
    Auto,
    /// In the driver, before the kernel makes packets of frames.
    Native,
    /// In the kernel, behind that: for drivers without XDP.
    Generic,
    /// Not at all.
    #[default]
    Off,
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug)]
pub struct XdpChoice {
    /// `--xdp`.
    pub mode: XdpMode,
    /// `--xdp-unknown-vtep`.
    pub unknown_vtep: UnknownVtep,
}

impl XdpChoice {
    /// No XDP.
    pub const OFF: Self = Self { mode: XdpMode::Off, unknown_vtep: UnknownVtep::Off };

    /// What is done on `interface`, which the log explains.
    pub fn on(self, interface: &str) -> Xdp {
        let (hook, because) = match self.mode {
            XdpMode::Off => return Xdp::OFF,
            XdpMode::Native => (Some(Hook::XdpUnderlay), "--xdp=native asks for it".to_owned()),
            XdpMode::Generic => (Some(Hook::XdpGeneric), "--xdp=generic asks for it".to_owned()),
            XdpMode::Auto => match Device::of(Path::new("/sys/class/net"), interface).verdict() {
                Ok(because) => (Some(Hook::XdpUnderlay), because),
                Err(because) => (None, because),
            },
        };
        let mode = match hook {
            Some(Hook::XdpUnderlay) => "native",
            Some(_) => "generic",
            None => "off",
        };
        let unknown_vtep = self.unknown_vtep;
        info!(interface, mode, because, unknown_vtep = unknown_vtep.label(), "XDP on the external interface");
        match hook {
            Some(_) => Xdp { hook, unknown_vtep },
            None => Xdp::OFF,
        }
    }
}

/// What is behind an interface.
#[derive(Debug, PartialEq, Eq)]
enum Device {
    /// Nothing: veth, bridge, bond and the like.
    Virtual,
    /// A card, real or the hypervisor's, with this driver.
    Card(String),
}

/// Drivers that turn their own offloads off while a program is attached: TCP loses more than anything gains.
const LOSES: [(&str, &str); 2] = [
    ("virtio_net", "it turns off the guest's offloads while a program is attached"),
    ("xen-netfront", "it gives up scatter-gather while a program is attached"),
];

impl Device {
    /// What sysfs, mounted as `class` for `/sys/class/net`, says of `interface`.
    fn of(class: &Path, interface: &str) -> Self {
        let driver: PathBuf = class.join(interface).join("device/driver");
        let name = fs::canonicalize(driver)
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        name.map_or(Self::Virtual, Self::Card)
    }

    /// Whether native XDP is worth while on it, and why (not).
    fn verdict(&self) -> Result<String, String> {
        match self {
            Self::Virtual => {
                Err("it is no network card: a program would cut TCP aggregates that stay whole without"
                    .into())
            }
            Self::Card(driver) => match LOSES.iter().find(|(name, _)| name == driver) {
                Some((_, why)) => Err(format!("driver {driver}: {why}")),
                None => Ok(format!("a network card, driver {driver}")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn sysfs(driver: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("eth0/device");
        match driver {
            Some(driver) => {
                let target = root.path().join("drivers").join(driver);
                fs::create_dir_all(&target).unwrap();
                fs::create_dir_all(&device).unwrap();
                symlink(target, device.join("driver")).unwrap();
            }
            None => fs::create_dir_all(root.path().join("eth0")).unwrap(),
        }
        root
    }

    #[test]
    fn cards_get_xdp_and_what_loses_by_it_does_not() {
        let verdict = |driver| Device::of(sysfs(driver).path(), "eth0").verdict();
        assert!(verdict(Some("mlx5_core")).unwrap().contains("mlx5_core"));
        assert!(verdict(Some("virtio_net")).unwrap_err().contains("virtio_net"));
        assert!(verdict(None).unwrap_err().contains("no network card"));
        assert_eq!(Device::of(Path::new("/nonexistent"), "eth0"), Device::Virtual);
    }

    #[test]
    fn what_is_asked_for_is_done_whatever_the_device() {
        let on = |mode| XdpChoice { mode, unknown_vtep: UnknownVtep::Count }.on("no-such-interface");
        assert_eq!(on(XdpMode::Native).hook, Some(Hook::XdpUnderlay));
        assert_eq!(on(XdpMode::Generic).hook, Some(Hook::XdpGeneric));
        assert_eq!(on(XdpMode::Generic).unknown_vtep, UnknownVtep::Count);
        assert_eq!(on(XdpMode::Auto), Xdp::OFF);
        assert_eq!(on(XdpMode::Off), Xdp::OFF);
    }
}
