//! Words and places that several parts agree on.

/// The process that answers HTTP requests.
pub const WEB: &str = "web";
/// The app that is meant where none is named.
pub const DEFAULT_APP: &str = "web";
/// Where containers find the platform's programs.
pub const LIFECYCLE: &str = "/cnb/lifecycle";
/// The program that makes an image of source.
pub const CREATOR: &str = "/cnb/lifecycle/creator";
/// The program every process of an image is started with.
pub const LAUNCHER: &str = "/cnb/lifecycle/launcher";
/// The program that serves a site of files.
pub const STATIC_SERVER: &str = "/cnb/lifecycle/static-server";
/// All of them; each is the one executable under another name.
pub const PROGRAMS: [&str; 3] = [CREATOR, LAUNCHER, STATIC_SERVER];

/// Variables that the platform sets for every process; a value of somebody else has no effect.
pub const PLATFORM_ENV: [&str; 12] = [
    "PORT",
    "SHORE_APP",
    "SHORE_CONTAINER",
    "SHORE_DEPLOYMENT",
    "SHORE_IDENTITY_DIR",
    "SHORE_INSTANCE_ID",
    "SHORE_INSTANCE_INDEX",
    "SHORE_PROCESS",
    "SHORE_PROJECT",
    "SHORE_ROOT",
    "SHORE_SESSION",
    "SHORE_WORKSPACE",
];

/// The command line that starts `argv` in an image without a process type.
pub fn launched(argv: impl IntoIterator<Item = String>) -> Vec<String> {
    [LAUNCHER.to_owned(), "--".to_owned()].into_iter().chain(argv).collect()
}

/// The name of one of [`PROGRAMS`], as it is started.
pub fn program_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_in_their_directory() {
        for program in PROGRAMS {
            assert_eq!(format!("{LIFECYCLE}/{}", program_name(program)), program);
        }
    }
}
