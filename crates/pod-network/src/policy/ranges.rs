//! Sets of addresses as ranges that neither overlap nor touch, as the kernel's interval sets want them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// From the first to the last address, both included, as numbers.
type Range = (u128, u128);

/// The addresses of `nets` in one family, without those of what is excepted from each; written as nft does.
pub(crate) fn ranges(nets: &[(IpNet, Vec<IpNet>)], v4: bool) -> Vec<String> {
    let mut all: Vec<Range> = Vec::new();
    for (net, except) in nets.iter().filter(|(net, _)| net.addr().is_ipv4() == v4) {
        let mut left = vec![range_of(net)];
        for hole in except.iter().filter(|hole| hole.addr().is_ipv4() == v4).map(range_of) {
            left = left.into_iter().flat_map(|range| without(range, hole)).collect();
        }
        all.extend(left);
    }
    merged(all).into_iter().map(|range| written(range, v4)).collect()
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn range_of(net: &IpNet) -> Range {
    (number(net.network()), number(net.broadcast()))
}

fn without((first, last): Range, hole: Range) -> Vec<Range> {
    if hole.1 < first || last < hole.0 {
        return vec![(first, last)];
    }
    let before = (first < hole.0).then(|| (first, hole.0 - 1));
    let after = (hole.1 < last).then(|| (hole.1 + 1, last));
    before.into_iter().chain(after).collect()
}

fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn written((first, last): Range, v4: bool) -> String {
    let ip = |number: u128| match u32::try_from(number) {
        Ok(number) if v4 => Ipv4Addr::from(number).to_string(),
        _ => Ipv6Addr::from(number).to_string(),
    };
    if first == last { ip(first) } else { format!("{}-{}", ip(first), ip(last)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(nets: &[(&str, &[&str])], v4: bool, want: &[&str]) {
        let nets: Vec<(IpNet, Vec<IpNet>)> = nets
            .iter()
            .map(|(net, except)| (net.parse().unwrap(), except.iter().map(|e| e.parse().unwrap()).collect()))
            .collect();
        assert_eq!(ranges(&nets, v4), want);
    }

    #[test]
    fn holes_are_cut_and_neighbours_are_joined() {
        check(&[("10.0.0.0/24", &[])], true, &["10.0.0.0-10.0.0.255"]);
        check(&[("10.0.0.0/24", &["10.0.0.0/25"])], true, &["10.0.0.128-10.0.0.255"]);
        check(&[("10.0.0.0/30", &["10.0.0.1/32"])], true, &["10.0.0.0", "10.0.0.2-10.0.0.3"]);
        check(&[("10.0.0.0/24", &["10.0.0.0/24"])], true, &[]);
        check(&[("10.0.0.0/25", &[]), ("10.0.0.128/25", &[])], true, &["10.0.0.0-10.0.0.255"]);
        // What one excepts, another may allow.
        check(&[("10.0.0.0/24", &["10.0.0.8/32"]), ("10.0.0.8/32", &[])], true, &["10.0.0.0-10.0.0.255"]);
        check(&[("0.0.0.0/0", &["10.0.0.0/8"])], true, &["0.0.0.0-9.255.255.255", "11.0.0.0-255.255.255.255"]);
        check(&[("10.0.0.0/8", &[]), ("fd00::/126", &["fd00::1/128"])], false, &["fd00::", "fd00::2-fd00::3"]);
        check(&[("::/0", &[])], false, &["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    }
}
