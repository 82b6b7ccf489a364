//! Get and list, with the meanings of `resourceVersion`.

use std::sync::Arc;

use apimachinery::status::Status;
use storage::{Key, KeyRange, Revision, StorageError};

use super::options::{ListOptions, VersionMatch};
use super::page::{self, Token};
use super::{Registry, object_of, status};
use crate::cache::feed::below;
use crate::cache::selection::Selection;
use crate::cache::{Listed, Object};
use crate::resources::Resource;

/// A list, ready to be written.
pub struct ListResult {
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
    pub continue_token: Option<String>,
    pub remaining: Option<usize>,
}

/// Why a list failed; a token that has become too old comes with one that continues from now.
#[derive(Debug)]
pub struct ListFailure {
    pub status: Status,
    pub continue_token: Option<String>,
}

impl From<Status> for ListFailure {
    fn from(status: Status) -> Self {
        ListFailure { status, continue_token: None }
    }
}

/// Upstream's advice to a client whose token is too old.
const TOKEN_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
     continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing \
     with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the \
     time the first chunk was returned and now may show up in the list.";

impl Registry {
    /// One object. `version` is the query's `resourceVersion`: empty means the latest, read from the store; `0` means
    /// whatever is at hand; anything else means at least that.
    ///
    /// # Errors
    /// 404 and what the store answers.
    pub async fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        version: &str,
    ) -> Result<Arc<Object>, Status> {
        let cache = resource.stored();
        let key = cache.shape.key(namespace, name);
        let found = match version {
            "" => self.read(resource, &key).await?,
            "0" => cache.get(&key),
            asked => {
                let asked = parse_version(asked).map_err(status::plain)?;
                self.feed.reach(asked).await.map_err(|e| status::too_large(&e))?;
                cache.get(&key)
            }
        };
        found.ok_or_else(|| Status::not_found(&resource.def.gvr, name))
    }

    /// Everything that a selection means now.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn list_now(&self, resource: &Resource, selection: &Selection) -> Result<ListResult, Status> {
        let fed = self.fresh(resource).await?;
        let listed = resource.stored().list(selection, fed);
        self.demand_readable(resource, selection).await?;
        Ok(whole(listed))
    }

    /// Nothing below that cannot be read: what is left out of a list would be taken for deleted.
    ///
    /// # Errors
    /// 500, naming what cannot be read and why.
    pub async fn demand_readable(&self, resource: &Resource, selection: &Selection) -> Result<(), Status> {
        for (key, _) in resource.stored().unreadable(&list_prefix(resource, selection)) {
            self.read(resource, &key).await?;
        }
        Ok(())
    }

    /// # Errors
    /// 400, 410, 422 and 504 as upstream gives them.
    pub async fn list(
        &self,
        resource: &Resource,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<ListResult, ListFailure> {
        let prefix = list_prefix(resource, selection);
        if !options.continue_token.is_empty() {
            return self.continue_list(resource, selection, options, &prefix).await;
        }
        let cache = resource.stored();
        let version = options.resource_version.as_str();
        let parsed = if version.is_empty() {
            None
        } else {
            Some(parse_version(version).map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?)
        };
        // A limit with an old version and no match means that version exactly: the first page of a consistent walk.
        let exact = match (options.version_match, parsed) {
            (Some(VersionMatch::Exact), Some(at)) => Some(at),
            (None, Some(at)) if options.limit > 0 && at > Revision(0) => Some(at),
            _ => None,
        };
        if let Some(at) = exact {
            self.feed.reach(at).await.map_err(|e| status::too_large(&e))?;
            let listed = self.list_past(resource, selection, at, None, options.limit).await?;
            return Ok(paged(listed, &prefix));
        }
        let fed = match parsed {
            None => self.fresh(resource).await?,
            Some(at) => self.feed.reach(at).await.map_err(|e| status::too_large(&e))?,
        };
        if options.limit == 0 || parsed == Some(Revision(0)) {
            let listed = cache.list(selection, fed);
            self.demand_readable(resource, selection).await?;
            return Ok(whole(listed));
        }
        let listed = self.list_past(resource, selection, fed, None, options.limit).await?;
        Ok(paged(listed, &prefix))
    }

    async fn continue_list(
        &self,
        resource: &Resource,
        selection: &Selection,
        options: &ListOptions,
        prefix: &str,
    ) -> Result<ListResult, ListFailure> {
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue").into());
        }
        let token = page::decode(&options.continue_token)
            .map_err(|e| Status::bad_request(format!("invalid continue token: {e}")))?;
        let after = Key(format!("{prefix}{}", token.after).into());
        let at = match token.revision {
            Some(at) => {
                self.feed.reach(at).await.map_err(|e| status::too_large(&e))?;
                at
            }
            None => self.fresh(resource).await?,
        };
        match self.list_past(resource, selection, at, Some(&after), options.limit).await {
            Ok(listed) => Ok(paged(listed, prefix)),
            Err(expired) if expired.code == 410 => {
                let continue_token = Some(page::encode(&Token { revision: None, after: token.after }));
                Err(ListFailure { status: Status::expired(TOKEN_EXPIRED), continue_token })
            }
            Err(other) => Err(other.into()),
        }
    }

    /// A page as of a revision, from the cache, or from the store when the cache has forgotten it.
    async fn list_past(
        &self,
        resource: &Resource,
        selection: &Selection,
        at: Revision,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Listed, Status> {
        let cache = resource.stored();
        if at < self.feed.oldest() {
            return Err(status::expired_list());
        }
        if let Some(listed) = cache.list_at(selection, at, after, limit) {
            self.demand_readable(resource, selection).await?;
            return Ok(listed);
        }
        let prefix = list_prefix(resource, selection);
        let mut range = below(&prefix);
        if let Some(after) = after {
            range = KeyRange { start: Key(format!("{}\0", after.0).into()), end: range.end };
        }
        let fail = |e: StorageError| status::of(&e, &resource.def.gvr, &range.start);
        let page = self.storage.range(&range, 0, Some(at)).await.map_err(fail)?;
        let mut listed = Listed { objects: Vec::new(), revision: at, next: None, remaining: None };
        for entry in page.entries {
            let object = object_of(cache, entry)?;
            if !selection.matches(&cache.shape, &object) {
                continue;
            }
            if limit > 0 && listed.objects.len() == limit {
                listed.next = listed.objects.last().map(|o| o.key.clone());
                break;
            }
            listed.objects.push(object);
        }
        Ok(listed)
    }

    /// The revision of caches that have everything that the store had when this was called.
    async fn fresh(&self, resource: &Resource) -> Result<Revision, Status> {
        let key = Key(resource.stored().shape.prefix.as_str().into());
        self.feed.catch_up().await.map_err(|e| status::of(&e, &resource.def.gvr, &key))
    }
}

/// The keys of a list begin with this: tokens leave it out.
fn list_prefix(resource: &Resource, selection: &Selection) -> String {
    let shape = &resource.stored().shape;
    match selection.namespace.as_deref().filter(|_| shape.namespaced) {
        Some(namespace) => format!("{}{namespace}/", shape.prefix),
        None => shape.prefix.clone(),
    }
}

fn whole(listed: Listed) -> ListResult {
    ListResult { objects: listed.objects, revision: listed.revision, continue_token: None, remaining: None }
}

fn paged(listed: Listed, prefix: &str) -> ListResult {
    let continue_token = listed.next.map(|key| {
        let after = key.0.strip_prefix(prefix).unwrap_or(&key.0).to_owned();
        page::encode(&Token { revision: Some(listed.revision), after })
    });
    let remaining = listed.remaining.filter(|_| continue_token.is_some());
    ListResult { objects: listed.objects, revision: listed.revision, continue_token, remaining }
}

/// # Errors
/// Upstream's words for a version that is no number.
pub(crate) fn parse_version(text: &str) -> Result<Revision, String> {
    let number = text.parse::<u64>();
    number.map(Revision).map_err(|_| {
        format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax")
    })
}
