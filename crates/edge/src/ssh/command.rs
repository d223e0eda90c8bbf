//! The two commands a client may send, matched exactly.

use model::{DEFAULT_APP, Name};

/// Longer commands are refused unread.
const MAX_COMMAND: usize = 256;

/// What the client wants of git.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// `git push`.
    Receive,
    /// `git clone`, `git fetch`.
    Upload,
}

/// A command that may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) project: Name,
    pub(crate) app: Name,
}

/// `git-receive-pack '/project[/app][.git]'`, `git-upload-pack '…'`, and nothing else.
pub(crate) fn parse(data: &[u8]) -> Result<Request, String> {
    let refused = || {
        "this server takes only `git push` and `git clone`: \
         git push ssh://git@HOST:PORT/PROJECT main"
            .to_owned()
    };
    let text = std::str::from_utf8(data).ok().filter(|text| text.len() <= MAX_COMMAND);
    let (verb, path) = text.and_then(|text| text.split_once(' ')).ok_or_else(refused)?;
    let verb = match verb {
        "git-receive-pack" => Verb::Receive,
        "git-upload-pack" => Verb::Upload,
        _ => return Err(refused()),
    };
    let path = path.strip_prefix('\'').and_then(|path| path.strip_suffix('\'')).unwrap_or(path);
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let path = path.strip_suffix(".git").unwrap_or(path);
    let (project, app) = path.split_once('/').unwrap_or((path, DEFAULT_APP));
    let named = |what, text| {
        Name::parse(what, text).map_err(|error| {
            format!("{error}\nhint: the path is /PROJECT or /PROJECT/APP: see `git remote -v`")
        })
    };
    let (project, app) = (named("project", project)?, named("app", app)?);
    Ok(Request { verb, project, app })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_commands_and_nothing_else() {
        let parsed = |text: &str| {
            parse(text.as_bytes()).map(|it| format!("{:?} {} {}", it.verb, it.project, it.app))
        };
        assert_eq!(parsed("git-receive-pack '/shop'").as_deref(), Ok("Receive shop web"));
        assert_eq!(parsed("git-receive-pack '/shop.git'").as_deref(), Ok("Receive shop web"));
        assert_eq!(parsed("git-upload-pack 'shop/api/'").as_deref(), Ok("Upload shop api"));
        for bad in [
            "",
            "ls",
            "git-receive-pack",
            "git-receive-pack '../../etc'",
            "git-receive-pack '/a/b/c'",
            "git-receive-pack '/a;id'",
            "git-receive-pack '/$(id)'",
            "git-receive-pack '/a'; id",
            "git-receive-pack '/a\n/b'",
            "git-upload-pack --upload-pack=id '/a'",
            "git-upload-archive '/a'",
            "GIT-RECEIVE-PACK '/a'",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(&[0xff; 20]).is_err() && parse(&[b'a'; 1_000]).is_err());
    }
}
