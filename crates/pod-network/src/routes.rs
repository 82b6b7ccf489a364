//! The kernel's routes that belong to this crate, through rtnetlink.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};

/// Marks our routes among those of the host; a number that iproute2 gives to nobody.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(157);

/// Makes the kernel's routes of this crate equal to `wanted`, through the device with this index if there is one; writes only
/// the difference.
pub(crate) async fn sync(
    handle: &Handle,
    wanted: &BTreeMap<IpNet, IpAddr>,
    device: Option<u32>,
) -> Result<(), rtnetlink::Error> {
    let present = list(handle).await?;
    let is_wanted = |to: &IpNet, route: &Present| {
        wanted.get(to) == Some(&route.via) && device.is_none_or(|index| route.device == Some(index))
    };
    for (to, route) in present.iter().filter(|(to, route)| !is_wanted(to, route)) {
        tracing::info!(%to, via = %route.via, "route removed");
        handle.route().del(route.message.clone()).execute().await?;
    }
    for (to, via) in wanted.iter().filter(|(to, _)| !present.get(*to).is_some_and(|route| is_wanted(to, route))) {
        match add(handle, *to, *via, device).await {
            Ok(()) => tracing::info!(%to, %via, "route added"),
            // One node with an address that is not on our network must not keep the others from being reached.
            Err(error) => tracing::warn!(%to, %via, %error, "route not added"),
        }
    }
    Ok(())
}

struct Present {
    via: IpAddr,
    device: Option<u32>,
    message: RouteMessage,
}

async fn list(handle: &Handle) -> Result<BTreeMap<IpNet, Present>, rtnetlink::Error> {
    let mut ours = BTreeMap::new();
    for message in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(message).execute();
        while let Some(route) = routes.try_next().await? {
            if route.header.protocol == PROTOCOL
                && let Some((to, via)) = destination_and_gateway(&route)
            {
                let device =
                    route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
                ours.insert(to, Present { via, device, message: route });
            }
        }
    }
    Ok(ours)
}

fn destination_and_gateway(route: &RouteMessage) -> Option<(IpNet, IpAddr)> {
    let address = |a: &RouteAddress| match a {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    };
    let mut to = None;
    let mut via = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(a) => to = address(a),
            RouteAttribute::Gateway(a) => via = address(a),
            _ => {}
        }
    }
    Some((IpNet::new(to?, route.header.destination_prefix_length).ok()?, via?))
}

async fn add(handle: &Handle, to: IpNet, via: IpAddr, device: Option<u32>) -> Result<(), rtnetlink::Error> {
    let message = match (to, via) {
        (IpNet::V4(to), IpAddr::V4(via)) => {
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .gateway(via)
                .protocol(PROTOCOL);
            // In a tunnel, the next hop has an address that no network of ours explains.
            device.map_or_else(|| route.clone().build(), |index| route.clone().output_interface(index).onlink().build())
        }
        (IpNet::V6(to), IpAddr::V6(via)) => {
            let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .gateway(via)
                .protocol(PROTOCOL);
            device.map_or_else(|| route.clone().build(), |index| route.clone().output_interface(index).onlink().build())
        }
        _ => return Ok(()), // families are matched when the routes are planned
    };
    handle.route().add(message).replace().execute().await
}
