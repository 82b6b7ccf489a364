//! The shares of one network, each taken or free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// No network is cut into more shares than this, as upstream has it.
const MAX_SHARE_BITS: u8 = 16;

#[derive(Debug)]
pub(crate) struct CidrSet {
    network: IpNet,
    /// Prefix length of a share.
    mask: u8,
    taken: Vec<bool>,
    /// Where the search for a free share begins: behind the last one given, so that shares rest before they are reused.
    next: usize,
}

impl CidrSet {
    /// `None` if the mask is wider than the network or cuts it into too many shares.
    pub(crate) fn new(network: IpNet, mask: u8) -> Option<Self> {
        let bits = mask.checked_sub(network.prefix_len()).filter(|bits| *bits <= MAX_SHARE_BITS)?;
        if mask > network.max_prefix_len() {
            return None;
        }
        Some(Self { network: network.trunc(), mask, taken: vec![false; 1 << bits], next: 0 })
    }

    pub(crate) fn take(&mut self) -> Option<IpNet> {
        let count = self.taken.len();
        let free = (0..count).map(|step| (self.next + step) % count).find(|index| !self.taken[*index])?;
        self.taken[free] = true;
        self.next = (free + 1) % count;
        self.share(free)
    }

    /// Marks every share that overlaps `other`.
    pub(crate) fn occupy(&mut self, other: &IpNet) {
        self.mark(other, true);
    }

    pub(crate) fn release(&mut self, other: &IpNet) {
        self.mark(other, false);
    }

    fn mark(&mut self, other: &IpNet, value: bool) {
        let Some((first, last)) = self.overlap(other) else { return };
        self.taken[first..=last].fill(value);
    }

    /// The first and last share that `other` touches.
    fn overlap(&self, other: &IpNet) -> Option<(usize, usize)> {
        if !self.network.contains(other) && !other.contains(&self.network) {
            return None;
        }
        if other.contains(&self.network) {
            return Some((0, self.taken.len() - 1));
        }
        Some((self.index(other.network())?, self.index(other.broadcast())?))
    }

    fn index(&self, address: IpAddr) -> Option<usize> {
        let base = number(self.network.network());
        let offset = number(address).checked_sub(base)?;
        usize::try_from(offset >> u32::from(self.network.max_prefix_len() - self.mask)).ok()
    }

    fn share(&self, index: usize) -> Option<IpNet> {
        let shift = u32::from(self.network.max_prefix_len() - self.mask);
        let start = number(self.network.network()) + (u128::try_from(index).ok()? << shift);
        Some(match self.network {
            IpNet::V4(_) => Ipv4Net::new(Ipv4Addr::from(u32::try_from(start).ok()?), self.mask).ok()?.into(),
            IpNet::V6(_) => Ipv6Net::new(Ipv6Addr::from(start), self.mask).ok()?.into(),
        })
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn take(set: &mut CidrSet) -> String {
        set.take().map_or("none".into(), |share| share.to_string())
    }

    #[test]
    fn shares_are_given_once_until_released_and_rest_before_reuse() {
        let mut set = CidrSet::new(net("10.244.0.0/22"), 24).unwrap();
        set.occupy(&net("10.244.1.0/24"));
        assert_eq!([take(&mut set), take(&mut set)], ["10.244.0.0/24", "10.244.2.0/24"]);
        set.release(&net("10.244.0.0/24"));
        assert_eq!([take(&mut set), take(&mut set), take(&mut set)], ["10.244.3.0/24", "10.244.0.0/24", "none"]);
    }

    #[test]
    fn networks_that_overlap_are_left_out() {
        let mut set = CidrSet::new(net("10.0.0.0/14"), 16).unwrap();
        set.occupy(&net("10.0.0.0/15"));
        set.occupy(&net("192.168.0.0/16"));
        set.occupy(&net("10.2.3.4/32"));
        assert_eq!([take(&mut set), take(&mut set)], ["10.3.0.0/16", "none"]);
        set.release(&net("0.0.0.0/0"));
        assert_eq!(take(&mut set), "10.0.0.0/16");
    }

    #[test]
    fn six_works_like_four_and_nonsense_is_refused() {
        let mut set = CidrSet::new(net("fd00:10:244::/56"), 64).unwrap();
        assert_eq!([take(&mut set), take(&mut set)], ["fd00:10:244::/64", "fd00:10:244:1::/64"]);
        assert!(CidrSet::new(net("10.0.0.0/24"), 16).is_none());
        assert!(CidrSet::new(net("10.0.0.0/8"), 28).is_none());
        assert!(CidrSet::new(net("10.0.0.0/24"), 40).is_none());
    }
}
