//! Guessing which name was meant.

/// Names that are looked at; with more, no guess is better than a slow one.
const MAX_COMPARED: usize = 1_000;

/// The name nearest to `given`, when it is near enough to have been meant.
pub(crate) fn near<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let allowed = given.chars().count() / 3 + 1;
    names
        .take(MAX_COMPARED)
        .map(|name| (strsim::osa_distance(given, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_guessed_and_far_ones_are_not() {
        let guess = |given| near(given, ["shop", "blog", "api"].into_iter());
        for (given, wanted) in [
            ("shopp", Some("shop")),
            ("sohp", Some("shop")),
            ("blgo", Some("blog")),
            ("ap", Some("api")),
            ("warehouse", None),
        ] {
            assert_eq!(guess(given).as_deref(), wanted, "{given}");
        }
    }
}
