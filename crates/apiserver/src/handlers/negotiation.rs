//! Which encoding and which form a client wants of an answer, from `Accept`.

use apimachinery::status::{Details, Status};

/// How bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

impl Encoding {
    #[must_use]
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
            Encoding::Cbor => "application/cbor",
        }
    }

    fn of_subtype(subtype: &str) -> Option<Self> {
        match subtype {
            "json" => Some(Encoding::Json),
            "yaml" => Some(Encoding::Yaml),
            "vnd.kubernetes.protobuf" => Some(Encoding::Protobuf),
            "cbor" | "cbor-seq" => Some(Encoding::Cbor),
            _ => None,
        }
    }
}

/// What a client accepts, and what the server has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accept<'a> {
    pub header: Option<&'a str>,
    /// The server speaks CBOR.
    pub cbor: bool,
    /// Of what is answered there is no Table.
    pub no_table: bool,
}

impl<'a> From<Option<&'a str>> for Accept<'a> {
    fn from(header: Option<&'a str>) -> Self {
        Accept { header, ..Accept::default() }
    }
}

impl Accept<'_> {
    /// The encodings that there are, as upstream lists them.
    fn offered(self) -> Vec<&'static str> {
        let all = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf, Encoding::Cbor];
        all.iter().filter(|e| self.cbor || **e != Encoding::Cbor).map(|e| e.media_type()).collect()
    }

    fn encoding_of(self, clause: &Clause<'_>) -> Option<Encoding> {
        match (clause.kind, clause.subtype) {
            ("*" | "application", "*") => Some(Encoding::Json),
            ("application", subtype) => Encoding::of_subtype(subtype).filter(|e| self.cbor || *e != Encoding::Cbor),
            _ => None,
        }
    }
}

/// What is shown of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    /// `Table` of `meta.k8s.io`, in `v1` or `v1beta1`.
    Table(&'static str),
    Metadata(&'static str),
    MetadataList(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub encoding: Encoding,
    pub form: Form,
    pub pretty: bool,
}

impl Accepted {
    pub(crate) const JSON: Accepted = Accepted { encoding: Encoding::Json, form: Form::Object, pretty: false };
}

/// One alternative of an `Accept` header.
#[derive(Debug, PartialEq)]
pub(crate) struct Clause<'a> {
    pub kind: &'a str,
    pub subtype: &'a str,
    pub params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

/// The alternatives of an `Accept` header, best first; of equals, the first first.
pub(crate) fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = accept.split(',').filter_map(clause).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

fn clause(text: &str) -> Option<Clause<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let (kind, subtype) = match parts.next()? {
        "" => return None,
        "*" => ("*", "*"),
        full => full.split_once('/')?,
    };
    let mut clause = Clause { kind, subtype, params: Vec::new(), quality: 1.0 };
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        if key == "q" {
            clause.quality = value.parse().unwrap_or(1.0);
        } else {
            clause.params.push((key, value.trim_matches('"')));
        }
    }
    Some(clause)
}

/// What a plain request gets.
///
/// # Errors
/// 406 with the encodings that there are.
pub(crate) fn negotiate<'a>(accept: impl Into<Accept<'a>>, pretty: bool) -> Result<Accepted, Status> {
    let offer: Accept<'a> = accept.into();
    let accept = offer.header.map_or("*/*", |a| if a.trim().is_empty() { "*/*" } else { a });
    if accept == "application/json" {
        return Ok(Accepted { pretty, ..Accepted::JSON });
    }
    let clauses = clauses(accept);
    // The router of upstream looks first, and knows no partial wildcards.
    let known = |c: &Clause<'_>| {
        (c.kind == "*" && c.subtype == "*")
            || (c.kind == "application" && c.subtype != "*" && offer.encoding_of(c).is_some())
    };
    if !clauses.iter().any(known) {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", offer.offered().join(", "));
        return Err(Status::not_acceptable(message).with_details(Details::default()));
    }
    for clause in &clauses {
        let Some(encoding) = offer.encoding_of(clause) else { continue };
        let pretty = pretty || clause.param("pretty") == Some("1");
        match form_of(clause) {
            None => {}
            Some(Form::Table(_)) if offer.no_table => {}
            Some(form) => return Ok(Accepted { encoding, form, pretty }),
        }
    }
    Err(unacceptable(&offer.offered()))
}

/// What a watch gets: only what can be framed.
///
/// # Errors
/// 406 with the encodings that there are.
pub(crate) fn negotiate_stream<'a>(accept: impl Into<Accept<'a>>) -> Result<Accepted, Status> {
    let offer: Accept<'a> = accept.into();
    let accepted = negotiate(offer, false);
    let framed = clauses(offer.header.unwrap_or("*/*")).into_iter().find_map(|clause| {
        let encoding = offer.encoding_of(&clause).filter(|e| *e != Encoding::Yaml)?;
        Some(Accepted { encoding, form: form_of(&clause)?, pretty: false })
    });
    match (framed, accepted) {
        (Some(framed), _) => Ok(framed),
        (None, Err(status)) if status.details.is_some() => Err(status),
        (None, _) => {
            Err(unacceptable(&["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"]))
        }
    }
}

/// `None` for a form that nobody knows.
fn form_of(clause: &Clause<'_>) -> Option<Form> {
    let Some(kind) = clause.param("as") else { return Some(Form::Object) };
    if clause.param("g") != Some("meta.k8s.io") {
        return None;
    }
    let version = match clause.param("v")? {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    match kind {
        "Table" => Some(Form::Table(version)),
        "PartialObjectMetadata" => Some(Form::Metadata(version)),
        "PartialObjectMetadataList" => Some(Form::MetadataList(version)),
        _ => None,
    }
}

pub(crate) fn unacceptable(types: &[&str]) -> Status {
    Status::not_acceptable(format!("only the following media types are accepted: {}", types.join(", ")))
}

/// The encoding of an error: what the client accepts if that can be said, else JSON.
#[must_use]
pub(crate) fn encoding_of_error<'a>(accept: impl Into<Accept<'a>>) -> Encoding {
    negotiate(accept, false).map_or(Encoding::Json, |accepted| accepted.encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, want: &str) {
        let got = match negotiate(Some(accept), false) {
            Ok(a) => format!("{:?} {:?}", a.encoding, a.form),
            Err(status) => format!("{} {}", status.code, status.message.lines().next().unwrap_or_default()),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn the_best_alternative_that_is_known_wins() {
        check("*/*", "Json Object");
        check("application/yaml;q=0.5,application/json;q=0.1", "Yaml Object");
        check("text/html,application/json;q=0.2", "Json Object");
        check("application/vnd.kubernetes.protobuf,application/json", "Protobuf Object");
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "Json Table(\"v1\")");
        check("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", "Json Object");
        check("application/*", "406 406: Not Acceptable");
        check("text/html", "406 406: Not Acceptable");
        check(
            "application/json;as=Unknown;v=v1;g=meta.k8s.io",
            "406 only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        );
    }

    #[test]
    fn cbor_is_spoken_where_it_is_switched_on() {
        let accept = |cbor| Accept { cbor, ..Some("application/cbor").into() };
        assert_eq!(negotiate(accept(true), false).unwrap().encoding, Encoding::Cbor);
        assert_eq!(negotiate(accept(false), false).unwrap_err().code, 406);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let plain = |header: &str| {
            negotiate(Accept { header: Some(header), no_table: true, ..Accept::default() }, false).map(|a| a.form)
        };
        assert_eq!(plain(table).unwrap_err().code, 406);
        assert_eq!(plain(&format!("{table},application/json")), Ok(Form::Object));
        let none = Accept { cbor: true, ..Some("text/html").into() };
        assert!(negotiate(none, false).unwrap_err().message.ends_with("protobuf, application/cbor"));
    }

    #[test]
    fn watches_are_framed_json_or_protobuf() {
        assert_eq!(negotiate_stream(Some("application/json;stream=watch")).unwrap(), Accepted::JSON);
        assert_eq!(negotiate_stream(Some("application/yaml")).unwrap_err().code, 406);
    }
}
