//! The kernel's VXLAN device that belongs to this crate, through rtnetlink.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Error, Handle, LinkVxlan};

use crate::plan::{Mac, Tunnel};

const NAME: &str = "kelson-vxlan";
const ID: u32 = 1;
/// The port that Linux has used since before there was an assigned one; what others' overlays use too.
const PORT: u16 = 8472;

/// Makes the device equal to `wanted`; without one there is none. Gives its index.
pub(crate) async fn sync(handle: &Handle, wanted: Option<&Tunnel>, mtu: u32) -> Result<Option<u32>, Error> {
    let present = link(handle, NAME).await?;
    let Some(wanted) = wanted else {
        if let Some(link) = present {
            handle.link().del(link.header.index).execute().await?;
        }
        return Ok(None);
    };
    let index = match present {
        Some(link) if is_as_wanted(&link, wanted, mtu) => link.header.index,
        other => {
            // Most of a device's properties cannot be changed.
            if let Some(link) = other {
                handle.link().del(link.header.index).execute().await?;
            }
            create(handle, wanted, mtu).await?
        }
    };
    sync_addresses(handle, index, wanted).await?;
    sync_neighbours(handle, index, wanted).await?;
    Ok(Some(index))
}

pub(crate) async fn link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, Error> {
    // Asked for by name, a device that is not there is an error of its own kind; a list is plain.
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        if link.attributes.iter().any(|a| matches!(a, LinkAttribute::IfName(n) if n == name)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

fn is_as_wanted(link: &LinkMessage, wanted: &Tunnel, mtu: u32) -> bool {
    let local = |data: &InfoVxlan| match data {
        InfoVxlan::Local(ip) => Some(IpAddr::V4(*ip)),
        InfoVxlan::Local6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let infos =
        link.attributes.iter().filter_map(|a| if let LinkAttribute::LinkInfo(infos) = a { Some(infos) } else { None });
    let from = infos.flatten().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => data.iter().find_map(local),
        _ => None,
    });
    let has_mac = link.attributes.iter().any(|a| matches!(a, LinkAttribute::Address(mac) if *mac == wanted.mac));
    let has_mtu = link.attributes.iter().any(|a| matches!(a, LinkAttribute::Mtu(now) if *now == mtu));
    from == Some(wanted.from) && has_mac && has_mtu
}

async fn create(handle: &Handle, wanted: &Tunnel, mtu: u32) -> Result<u32, Error> {
    // Nothing is learnt from packets: who is where is written down.
    let device = LinkVxlan::new(NAME, ID).port(PORT).learning(false);
    let device = match wanted.from {
        IpAddr::V4(ip) => device.local(ip),
        IpAddr::V6(ip) => device.local6(ip),
    };
    let message = device.address(wanted.mac.to_vec()).mtu(mtu).up().build();
    handle.link().add(message).execute().await?;
    link(handle, NAME).await?.map(|link| link.header.index).ok_or(Error::RequestFailed)
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None })
}

async fn sync_addresses(handle: &Handle, index: u32, wanted: &Tunnel) -> Result<(), Error> {
    let mut present = Vec::new();
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = addresses.try_next().await? {
        let Some(ip) = address_of(&message).filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
        else {
            continue;
        };
        if wanted.addresses.contains(&ip) {
            present.push(ip);
        } else {
            handle.address().del(message).execute().await?;
        }
    }
    for ip in wanted.addresses.iter().filter(|ip| !present.contains(ip)) {
        let length = if ip.is_ipv4() { 32 } else { 128 };
        handle.address().add(index, *ip, length).execute().await?;
    }
    Ok(())
}

fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn destination_of(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        // A forwarding entry does not say of which family the address is.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
            let v4 = || <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
            v4().or_else(|| <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from))
        }
        _ => None,
    })
}

async fn list(handle: &Handle, index: u32, family: AddressFamily) -> Result<Vec<NeighbourMessage>, Error> {
    let mut all = Vec::new();
    let mut messages = handle.neighbours().get().set_address_family(family).execute();
    while let Some(message) = messages.try_next().await? {
        if message.header.ifindex == index && message.header.state == NeighbourState::Permanent {
            all.push(message);
        }
    }
    Ok(all)
}

/// Writes who has which address, and where they are; only what differs.
async fn sync_neighbours(handle: &Handle, index: u32, wanted: &Tunnel) -> Result<(), Error> {
    let mut known: BTreeMap<IpAddr, Mac> = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for message in list(handle, index, family).await? {
            let (Some(ip), Some(mac)) = (destination_of(&message), mac_of(&message)) else { continue };
            if wanted.neighbours.get(&ip) == Some(&mac) {
                known.insert(ip, mac);
            } else if !matches!(ip, IpAddr::V6(ip) if ip.is_multicast()) {
                handle.neighbours().del(message).execute().await?;
            }
        }
    }
    for (ip, mac) in wanted.neighbours.iter().filter(|(ip, _)| !known.contains_key(*ip)) {
        handle.neighbours().add(index, *ip).link_layer_address(mac).replace().execute().await?;
    }
    let mut known: BTreeMap<Mac, IpAddr> = BTreeMap::new();
    for message in list(handle, index, AddressFamily::Bridge).await? {
        let (Some(mac), Some(ip)) = (mac_of(&message), destination_of(&message)) else { continue };
        if wanted.forwarding.get(&mac) == Some(&ip) {
            known.insert(mac, ip);
        } else {
            handle.neighbours().del(message).execute().await?;
        }
    }
    for (mac, ip) in wanted.forwarding.iter().filter(|(mac, _)| !known.contains_key(*mac)) {
        let entry = handle.neighbours().add_bridge(index, mac).destination(*ip).flags(NeighbourFlags::Own);
        entry.replace().execute().await?;
    }
    Ok(())
}

/// The size of packets that the link with one of these addresses takes.
pub(crate) async fn link_mtu(handle: &Handle, addresses: &[IpAddr]) -> Result<Option<u32>, Error> {
    let mut index = None;
    let mut messages = handle.address().get().execute();
    while let Some(message) = messages.try_next().await? {
        if address_of(&message).is_some_and(|ip| addresses.contains(&ip)) {
            index = Some(message.header.index);
        }
    }
    let Some(index) = index else { return Ok(None) };
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await? {
        if link.header.index == index {
            return Ok(link
                .attributes
                .iter()
                .find_map(|a| if let LinkAttribute::Mtu(mtu) = a { Some(*mtu) } else { None }));
        }
    }
    Ok(None)
}
