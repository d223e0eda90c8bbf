//! git pushes with paths and project files that are wrong, to a server whose data is deep down.

use std::path::PathBuf;

use testkit::{Dev, Failure, Repo};

use crate::{holds, program, told};

/// With the rest of the path, more than the address of a socket holds.
const DEEP: usize = 120;
/// Each of them is a line of some 40 bytes.
const MANY_WARNINGS: usize = 3_000;

#[test]
fn a_wrong_push_is_refused_in_a_sentence_and_moves_nothing() -> Result<(), Failure> {
    let below = PathBuf::from("d".repeat(DEEP)).join("e".repeat(DEEP));
    let dev = Dev::start_below(program(), &below)?;
    let public = Repo::public_key(&dev, "owner")?;
    dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let repo = Repo::new(&dev, "shop", &examples.join("static-site"), "owner")?;
    let server = format!("ssh://git@127.0.0.1:{}", dev.ports.ssh);
    let long = "a".repeat(100);
    for (path, words) in [
        ("/shpo", ["there is no project shpo", "hint: did you mean `shop`?"]),
        ("/sho p", ["project name \"sho p\" is not allowed", "hint: the path is /PROJECT"]),
        ("/$(id)", ["project name \"$(id)\" is not allowed", "hint: the path is /PROJECT"]),
        ("/shop;id", ["project name \"shop;id\" is not allowed", "a-z, 0-9"]),
        ("/shop/`id`", ["app name \"`id`\" is not allowed", "a-z, 0-9"]),
        ("/../../etc", ["is not allowed", "a-z, 0-9"]),
        ("/sh\u{f6}p", ["is not allowed", "a-z, 0-9"]),
        (&format!("/{long}"), ["is not allowed", "1 to 40"]),
    ] {
        repo.point_to(&format!("{server}{path}"))?;
        let said = repo.push()?.failed(path)?;
        holds(&said, &words).map_err(|failure| format!("{path}: {failure}"))?;
    }
    repo.point_to(&format!("{server}/shop"))?;
    for (text, words) in [
        ("app \"web\" {\n  biuld {}\n}\n", ["shore.hcl:2:3: `biuld` is not known", "hint: "]),
        ("app \"web\" {\n", ["shore.hcl:1:", "rejected"]),
    ] {
        repo.change("shore.hcl", text)?;
        let said = repo.push()?.failed("a wrong project file")?;
        holds(&said, &words)?;
    }
    let status = dev.shore(&["status", "--project", "shop"])?.ok("status")?;
    holds(&status, &["nothing is released yet"])?;
    // Mended, the same branch goes through: no refused push left anything behind.
    std::fs::remove_file(repo.dir().join("shore.hcl")).map_err(told)?;
    repo.commit("without a project file")?;
    repo.push()?.ok("a good push")?;
    let page = testkit::get(dev.ports.http, "web.shop.localhost", "/").map_err(told)?;
    if page.status == 200 { Ok(()) } else { Err(format!("the page is {page:?}")) }
}

#[test]
fn a_push_that_git_warns_of_a_lot_goes_through() -> Result<(), Failure> {
    let dev = Dev::start(program())?;
    let public = Repo::public_key(&dev, "owner")?;
    dev.shore(&["key", "add", &public.display().to_string()])?.ok("key add")?;
    dev.shore(&["project", "create", "shop"])?.ok("project create")?;
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let repo = Repo::new(&dev, "shop", &examples.join("static-site"), "owner")?;
    // More than a pipe holds.
    let lines: Vec<_> = (0..MANY_WARNINGS).map(|line| format!("f{line} !!bad\n")).collect();
    repo.change(".gitattributes", &lines.concat())?;
    repo.push()?.ok("a push with warnings").map(|_| ())
}
