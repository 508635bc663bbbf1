//! Who may ask what over HTTP.
//!
//! Reading from this machine is open. Everything that changes something or shows what may be secret, and everything from
//! elsewhere, needs a token of the API. Two checks keep web pages of others from using a browser on this machine: the Host
//! must be a name of this one (else a name that leads here may be anybody's: DNS rebinding), and an Origin must be the
//! server itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::error;

/// Where a request comes from; `web::server` says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What a page takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Open to this machine.
    Reading,
    /// A token, always.
    Token,
}

/// The rules in force.
pub(crate) struct Guard {
    /// Host names that lead here, beside IP addresses.
    names: BTreeSet<String>,
    /// Whether this machine may read without a token.
    open: bool,
    /// Whose token of the API a text is.
    owner: Box<Owner>,
}

type Owner = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Who asks: the name of the token that was shown.
#[derive(Debug, Clone)]
pub(crate) struct Requester(pub(crate) String);

impl Guard {
    pub(crate) fn new(
        names: impl IntoIterator<Item = String>,
        open: bool,
        owner: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Guard {
        let names = names.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Guard { names, open, owner: Box::new(owner) }
    }

    /// Who asks, where that is known.
    fn check(&self, peer: IpAddr, needs: Needs, headers: &HeaderMap) -> Result<Option<Requester>, Refusal> {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !self.is_ours(host) {
            return Err(Refusal::Host(host.to_owned()));
        }
        if let Some(origin) = headers.get(ORIGIN)
            && !is_same_site(origin, host)
        {
            return Err(Refusal::Origin);
        }
        let open = self.open && needs == Needs::Reading && peer.to_canonical().is_loopback();
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token =
            token.and_then(|value| value.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer")));
        match token {
            Some((_, token)) => match (self.owner)(token.trim()) {
                Some(owner) => Ok(Some(Requester(owner))),
                None => Err(Refusal::WrongToken),
            },
            None if open => Ok(None),
            None => Err(Refusal::NoToken),
        }
    }

    /// Whether a Host header names this machine: by an address, which no name server can turn elsewhere, or a name it has.
    fn is_ours(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        address.parse::<IpAddr>().is_ok() || self.names.contains(&name)
    }
}

/// A page of this server, which a browser names as it names the host.
fn is_same_site(origin: &HeaderValue, host: &str) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    origin.is_some_and(|origin| origin.eq_ignore_ascii_case(host))
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Host(String),
    Origin,
    NoToken,
    WrongToken,
}

impl Refusal {
    fn answer(&self) -> Response {
        match self {
            Refusal::Host(host) => {
                let host: String = host.chars().take(100).collect();
                let problem = format!(
                    "the Host {host:?} is no name of this machine: ask for its address, or add the name to master.tls_names"
                );
                error(StatusCode::MISDIRECTED_REQUEST, problem)
            }
            Refusal::Origin => error(
                StatusCode::FORBIDDEN,
                String::from("the request comes from a page of another server (its Origin is not this one)"),
            ),
            Refusal::NoToken => unauthorized(
                "this needs a token: \"rpicluster api-token create NAME\" on the master makes one, to be sent as \
                 \"Authorization: Bearer TOKEN\"",
            ),
            Refusal::WrongToken => unauthorized("this token is not known (any more)"),
        }
    }
}

fn unauthorized(problem: &str) -> Response {
    let mut response = error(StatusCode::UNAUTHORIZED, problem.to_owned());
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The layer for pages of one kind.
pub(crate) async fn guard(
    State((guard, needs)): State<(Arc<Guard>, Needs)>,
    mut request: Request,
    next: Next,
) -> Response {
    // Without a peer, which is no request of `web::server`, nothing is open.
    let peer = request.extensions().get::<Peer>().map_or(IpAddr::from([0; 4]), |Peer(peer)| peer.ip());
    match guard.check(peer, needs, request.headers()) {
        Ok(requester) => {
            if let Some(requester) = requester {
                request.extensions_mut().insert(requester);
            }
            next.run(request).await
        }
        Err(refusal) => refusal.answer(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    /// What a check comes to, and whoever asks.
    fn check(guard: &Guard, peer: IpAddr, needs: Needs, headers: &HeaderMap) -> Result<Option<String>, Refusal> {
        guard.check(peer, needs, headers).map(|requester| requester.map(|Requester(name)| name))
    }

    fn guard() -> Guard {
        let names = ["Head".to_owned(), "head.local".to_owned()];
        Guard::new(names, true, |token| (token == "right").then(|| "owner".to_owned()))
    }

    #[test]
    fn reading_is_open_to_this_machine_and_everything_else_needs_a_token() {
        let bare = headers(&[(HOST, "127.0.0.1:8080")]);
        let right = headers(&[(HOST, "head.local:8080"), (AUTHORIZATION, "Bearer right")]);
        let wrong = headers(&[(HOST, "head"), (AUTHORIZATION, "bearer wrong")]);
        let basic = headers(&[(HOST, "head"), (AUTHORIZATION, "Basic right")]);
        for (peer, needs, open) in [
            (HERE, Needs::Reading, true),
            ("::1".parse().unwrap(), Needs::Reading, true),
            ("::ffff:127.0.0.1".parse().unwrap(), Needs::Reading, true),
            (HERE, Needs::Token, false),
            (ELSEWHERE, Needs::Reading, false),
            (ELSEWHERE, Needs::Token, false),
        ] {
            let without = if open { Ok(None) } else { Err(Refusal::NoToken) };
            assert_eq!(check(&guard(), peer, needs, &bare), without, "{peer} {needs:?}");
            assert_eq!(check(&guard(), peer, needs, &basic), without, "{peer} {needs:?}");
            assert_eq!(check(&guard(), peer, needs, &right), Ok(Some("owner".to_owned())));
            assert_eq!(check(&guard(), peer, needs, &wrong), Err(Refusal::WrongToken));
        }
        let closed = Guard { open: false, ..guard() };
        assert_eq!(check(&closed, HERE, Needs::Reading, &bare), Err(Refusal::NoToken));
    }

    #[test]
    fn a_name_that_is_not_ours_may_be_anybodys() {
        let check_host = |host: &str| check(&guard(), HERE, Needs::Reading, &headers(&[(HOST, host)]));
        for ours in ["127.0.0.1", "10.1.2.3:8080", "[::1]:8080", "[fd00::1]", "HEAD", "head.local.:8080"] {
            assert_eq!(check_host(ours), Ok(None), "{ours}");
        }
        for other in ["evil.example:8080", "", "head.local.evil.example", "a b", "127.0.0.1.evil.example"] {
            assert_eq!(check_host(other), Err(Refusal::Host(other.into())), "{other}");
        }
        assert_eq!(check(&guard(), HERE, Needs::Reading, &HeaderMap::new()), Err(Refusal::Host(String::new())));
    }

    #[test]
    fn pages_of_other_servers_are_refused() {
        let check_origin =
            |origin: &str| check(&guard(), HERE, Needs::Reading, &headers(&[(HOST, "head:8080"), (ORIGIN, origin)]));
        assert_eq!(check_origin("http://head:8080"), Ok(None));
        assert_eq!(check_origin("https://HEAD:8080"), Ok(None));
        for other in ["http://evil.example", "http://head", "null", "http://head:8081", "head:8080"] {
            assert_eq!(check_origin(other), Err(Refusal::Origin), "{other}");
        }
    }
}
