//! What a span is part of, as W3C's `traceparent` writes it.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub trace: [u8; 16],
    pub span: [u8; 8],
}

impl Context {
    /// And whether the trace is followed. Versions to come may have more at the end.
    pub(super) fn parse(text: &str) -> Option<(Self, bool)> {
        let mut parts = text.split('-');
        let [version] = hex(parts.next()?)?;
        let (trace, span, [flags]) = (hex(parts.next()?)?, hex(parts.next()?)?, hex(parts.next()?)?);
        let ended = version != 0 || parts.next().is_none();
        let valid = version != 0xff && ended && trace != [0; 16] && span != [0; 8];
        valid.then_some((Context { trace, span }, flags & 1 == 1))
    }

    /// Is the trace one of so many in a million? The same for everybody who asks of the same trace.
    pub(super) fn is_among(&self, in_a_million: u32) -> bool {
        let [.., a, b, c, d, e, f, g, h] = self.trace;
        let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
        u128::from(place) * 1_000_000 < u128::from(in_a_million) << 63
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.span.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-01")
    }
}

/// Lower case only, as the specification demands.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes = text.as_bytes();
    let mut out = [0; N];
    if bytes.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_and_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let (context, sampled) = Context::parse(text).unwrap();
        assert!(sampled);
        assert_eq!(context.to_string(), text);
        assert!(!Context::parse(&text.replace("-01", "-00")).unwrap().1);
        assert!(Context::parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(Context::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_share_of_traces_is_followed() {
        let context = |last: u8| Context { trace: [last; 16], span: [1; 8] };
        assert!(!context(0).is_among(0) && context(255).is_among(1_000_000));
        assert!(context(100).is_among(500_000) && !context(200).is_among(500_000));
    }
}
