//! The kernel's routes that belong to this crate, through rtnetlink.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};

/// Marks our routes among those of the host; a number that iproute2 gives to nobody.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(157);

/// Makes the kernel's routes of this crate equal to `wanted`; writes only the difference.
pub(crate) async fn sync(handle: &Handle, wanted: &BTreeMap<IpNet, IpAddr>) -> Result<(), rtnetlink::Error> {
    let present = list(handle).await?;
    for (to, (via, message)) in &present {
        if wanted.get(to) != Some(via) {
            handle.route().del(message.clone()).execute().await?;
        }
    }
    for (to, via) in wanted {
        if present.get(to).is_none_or(|(now, _)| now != via) {
            match add(handle, *to, *via).await {
                Ok(()) => tracing::info!(%to, %via, "route added"),
                // One node with an address that is not on our network must not keep the others from being reached.
                Err(error) => tracing::warn!(%to, %via, %error, "route not added"),
            }
        }
    }
    Ok(())
}

async fn list(handle: &Handle) -> Result<BTreeMap<IpNet, (IpAddr, RouteMessage)>, rtnetlink::Error> {
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
                ours.insert(to, (via, route));
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

async fn add(handle: &Handle, to: IpNet, via: IpAddr) -> Result<(), rtnetlink::Error> {
    let message = match (to, via) {
        (IpNet::V4(to), IpAddr::V4(via)) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .gateway(via)
            .protocol(PROTOCOL)
            .build(),
        (IpNet::V6(to), IpAddr::V6(via)) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .gateway(via)
            .protocol(PROTOCOL)
            .build(),
        _ => return Ok(()), // families are matched when the routes are planned
    };
    handle.route().add(message).replace().execute().await
}
