//! The checked-in OpenAPI document is the one the code describes.

#[test]
fn the_document_is_the_one_checked_in() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let described = edge::openapi();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &described).expect("the document is written");
    }
    let known = std::fs::read_to_string(path).expect("docs/openapi.json is there");
    assert!(
        known == described,
        "docs/openapi.json is out of date: run UPDATE_OPENAPI=1 cargo test -p edge, look at the diff"
    );
    assert!(described.contains("\"openapi\": \"3.1"), "it is OpenAPI 3.1");
}
