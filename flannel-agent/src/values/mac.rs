//! Ethernet addresses as flannel writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de::Error as _};

/// An Ethernet address, network order; `aa:bb:cc:dd:ee:ff` in text and JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A random address, locally administered and unicast (IEEE 802-2014, 8.4), as upstream's
    /// `pkg/mac` makes one for a new VXLAN device.
    pub fn random() -> Self {
        let mut octets: [u8; 6] = rand::random();
        octets[0] = (octets[0] & 0xfe) | 0x02;
        Self(octets)
    }

    /// Whether a device can have it: neither a group's nor zero (the kernel's `is_valid_ether_addr`).
    pub fn is_of_one_device(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// Text that is not six hexadecimal octets joined by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: write six hexadecimal octets, as 0e:00:00:00:00:01")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(refused)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        if parts.next().is_some() { Err(refused()) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's TestNewHardwareAddr.
    #[test]
    fn new_hardware_addr() {
        for _ in 0..100 {
            let Mac([first, ..]) = Mac::random();
            assert_eq!(first & 0b11, 0b10, "locally administered, and no group");
        }
        assert_ne!(Mac::random(), Mac::random());
        assert!(Mac::random().is_of_one_device());
        assert!(!Mac([0; 6]).is_of_one_device() && !Mac([0xff; 6]).is_of_one_device());
    }
}
