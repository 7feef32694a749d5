//! A watch that survives a master's restart: it resumes from the last revision it saw, and starts
//! over when the master no longer remembers that far.

use std::time::Duration;

use serde_json::Value;
use timonier_proto::v1::{self, WatchEvent, watch_event};
use timonier_proto::{ApiError, Kind, Reason};
use tonic::{Code, Request, Response, Status, Streaming};

use super::calls::{Filter, tree};
use super::retry::{Backoff, Policy, is_broken};
use super::{Client, Control};
use crate::error::Outcome;

/// How long masters may be away before a watch gives up.
const AWAY_MAX: Duration = Duration::from_secs(60);

/// What a watch saw.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Added(Value),
    Modified(Value),
    Deleted(Value),
    /// All objects follow anew; forget what was seen before.
    Reset,
}

pub struct Watch {
    client: Client,
    request: v1::WatchRequest,
    stream: Option<Streaming<WatchEvent>>,
    backoff: Backoff,
    reset: bool,
}

async fn open(
    mut control: Control,
    request: Request<v1::WatchRequest>,
) -> Result<Response<Streaming<WatchEvent>>, Status> {
    control.watch(request).await
}

impl Client {
    /// Starts with the objects as they are, then every change.
    pub async fn watch(&self, kind: Kind, filter: &Filter) -> Outcome<Watch> {
        let request = v1::WatchRequest {
            kind: kind.to_string(),
            namespace: if kind.info().namespaced {
                filter.namespace.clone()
            } else {
                String::new()
            },
            label_selector: filter.labels.clone(),
            field_selector: filter.fields.clone(),
            from_revision: None,
        };
        let stream = self.open(request.clone(), open).await?;
        Ok(Watch {
            client: self.clone(),
            request,
            stream: Some(stream),
            backoff: Backoff::default(),
            reset: false,
        })
    }
}

impl Watch {
    /// The next event. Fails when the request is refused or no master came back in time.
    pub async fn next(&mut self) -> Outcome<Seen> {
        loop {
            if self.reset {
                self.reset = false;
                return Ok(Seen::Reset);
            }
            let Some(stream) = &mut self.stream else {
                self.reopen().await?;
                continue;
            };
            match stream.message().await {
                Ok(Some(event)) => {
                    self.backoff = Backoff::default();
                    self.remember(&event);
                    if let Some(seen) = decode(&event)? {
                        return Ok(seen);
                    }
                }
                Ok(None) => self.stream = None,
                Err(status) => self.lost(status)?,
            }
        }
    }

    /// Up to where to resume. Additions of the first listing come in no order of revisions, so
    /// they are no place to resume from.
    fn remember(&mut self, event: &WatchEvent) {
        let listing = self.request.from_revision.is_none()
            && matches!(event.r#type(), watch_event::Type::Added);
        if !listing && event.revision > 0 {
            let last = self.request.from_revision.unwrap_or(0);
            self.request.from_revision = Some(last.max(event.revision));
        }
    }

    fn lost(&mut self, status: Status) -> Outcome {
        self.stream = None;
        if ApiError::from_grpc(&status).reason == Reason::Expired {
            self.request.from_revision = None;
            self.reset = true;
            return Ok(());
        }
        let code = status.code();
        let transient = matches!(code, Code::Unavailable | Code::Cancelled | Code::Aborted);
        if transient || is_broken(&status) { Ok(()) } else { Err(self.client.explained(status)) }
    }

    async fn reopen(&mut self) -> Outcome {
        tokio::time::sleep(self.backoff.next()).await;
        let policy = Policy::resume(AWAY_MAX, AWAY_MAX);
        let opened = self.client.tried(&policy, self.request.clone(), open).await;
        match opened {
            Ok(stream) => {
                self.stream = Some(stream);
                self.reset = self.request.from_revision.is_none();
            }
            Err(failure) if failure.is_reason(Reason::Expired) => {
                self.request.from_revision = None;
                self.reset = true;
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

fn decode(event: &WatchEvent) -> Outcome<Option<Seen>> {
    Ok(match event.r#type() {
        watch_event::Type::Added => Some(Seen::Added(tree(&event.json)?)),
        watch_event::Type::Modified => Some(Seen::Modified(tree(&event.json)?)),
        watch_event::Type::Deleted => Some(Seen::Deleted(tree(&event.json)?)),
        watch_event::Type::Bookmark | watch_event::Type::Unspecified => None,
    })
}
