//! Reading values out of parsed HCL, with positions in every message.

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::Span as _;
use hcl_edit::expr::{Expression, ObjectKey};
use hcl_edit::structure::{Attribute, Block, Body, Structure};
use model::{MAX_CPU_SHARES, Name, ProcessSpec};

/// Most bytes of a project file.
pub const MAX_FILE: usize = 1024 * 1024;

/// What is wrong with a project file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shore.hcl:{line}:{column}: {message}")]
pub struct ManifestError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// The text a position is looked up in.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a>(pub(crate) &'a str);

type Result<T> = std::result::Result<T, ManifestError>;

impl Source<'_> {
    pub(crate) fn error(self, span: Option<Range<usize>>, message: String) -> ManifestError {
        let at = span.map_or(0, |span| span.start).min(self.0.len());
        let before = self.0.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        ManifestError { line, column, message }
    }

    pub(crate) fn parse(self) -> Result<Body> {
        if self.0.len() > MAX_FILE {
            return Err(self.error(None, format!("the file is larger than {MAX_FILE} bytes")));
        }
        self.0.parse().map_err(|error: hcl_edit::parser::Error| {
            let location = error.location();
            ManifestError {
                line: location.line(),
                column: location.column(),
                message: error.message().to_owned(),
            }
        })
    }

    /// Calls `attribute` and `block` for everything in `body`; either answers false for what it
    /// does not know.
    pub(crate) fn each(
        self,
        body: &Body,
        place: &str,
        allowed: &str,
        mut take: impl FnMut(Item<'_>) -> Result<bool>,
    ) -> Result<()> {
        for structure in body {
            let (item, name, span) = match structure {
                Structure::Attribute(it) => (Item::Attribute(it), it.key.as_str(), it.key.span()),
                Structure::Block(it) => (Item::Block(it), it.ident.as_str(), it.ident.span()),
            };
            if !take(item)? {
                let message = format!("`{name}` is not known {place}: there may be {allowed}");
                return Err(self.error(span, message));
            }
        }
        Ok(())
    }

    pub(crate) fn text(self, it: &Attribute) -> Result<String> {
        self.string(&it.value, it.key.as_str())
    }

    fn string(self, value: &Expression, what: &str) -> Result<String> {
        value.as_str().map(str::to_owned).ok_or_else(|| {
            self.error(value.span(), format!("`{what}` must be a text in double quotes"))
        })
    }

    pub(crate) fn name(self, it: &Attribute) -> Result<Name> {
        let text = self.text(it)?;
        Name::parse("this", &text).map_err(|error| self.error(it.value.span(), error.to_string()))
    }

    /// The one label of a block, as a name.
    pub(crate) fn label(self, it: &Block) -> Result<Name> {
        let [label] = it.labels.as_slice() else {
            let kind = it.ident.as_str();
            let message = format!("a `{kind}` block has one name: {kind} \"name\" {{ … }}");
            return Err(self.error(it.ident.span(), message));
        };
        Name::parse("this", label.as_str())
            .map_err(|error| self.error(label.span(), error.to_string()))
    }

    pub(crate) fn number(
        self,
        it: &Attribute,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64> {
        let number = it.value.as_number().and_then(hcl_edit::Number::as_u64);
        number.filter(|number| allowed.contains(number)).ok_or_else(|| {
            let (key, from, to) = (it.key.as_str(), allowed.start(), allowed.end());
            self.error(it.value.span(), format!("`{key}` must be a number from {from} to {to}"))
        })
    }

    /// A duration such as `"500ms"`, `"10s"`, `"2m"`, in milliseconds.
    pub(crate) fn millis(self, it: &Attribute) -> Result<u64> {
        let text = self.text(it)?;
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let factor = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let millis = digits.parse::<u64>().ok().zip(factor).and_then(|(n, f)| n.checked_mul(f));
        millis.ok_or_else(|| {
            let key = it.key.as_str();
            self.error(
                it.value.span(),
                format!("`{key}` must be a time such as \"500ms\" or \"10s\""),
            )
        })
    }

    pub(crate) fn texts(self, it: &Attribute) -> Result<Vec<String>> {
        let key = it.key.as_str();
        let Some(array) = it.value.as_array() else {
            let message = format!("`{key}` must be a list of texts: [\"a\", \"b\"]");
            return Err(self.error(it.value.span(), message));
        };
        array.iter().map(|value| self.string(value, key)).collect()
    }

    pub(crate) fn names(self, it: &Attribute) -> Result<Vec<Name>> {
        let parse = |text: String| {
            let name = Name::parse("this", &text);
            name.map_err(|error| self.error(it.value.span(), error.to_string()))
        };
        self.texts(it)?.into_iter().map(parse).collect()
    }

    pub(crate) fn flag(self, it: &Attribute) -> Result<bool> {
        it.value.as_bool().ok_or_else(|| {
            let message = format!("`{}` must be true or false", it.key.as_str());
            self.error(it.value.span(), message)
        })
    }

    /// A number of cores such as `0.5`, as shares of which a core has 1,024.
    pub(crate) fn cores(self, it: &Attribute) -> Result<u64> {
        const MAX_CORES: u64 = MAX_CPU_SHARES / 1_024;
        let text = it.value.as_number().map(ToString::to_string).unwrap_or_default();
        let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
        let part = format!("{part:0<3}");
        let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.len() < 6);
        let millis = number(whole).zip(number(&part).filter(|_| part.len() == 3));
        let millis = millis.map(|(whole, part)| whole * 1_000 + part);
        let millis = millis.filter(|millis| (10..=MAX_CORES * 1_000).contains(millis));
        let shares = millis.map(|millis| (millis * 1_024 / 1_000).max(1));
        shares.ok_or_else(|| {
            let message = format!("`cpu` must be a number of cores from 0.01 to {MAX_CORES}");
            self.error(it.value.span(), message)
        })
    }

    /// Asks the model whether a setting makes sense.
    pub(crate) fn holds(
        self,
        span: Option<Range<usize>>,
        change: impl FnOnce(&mut ProcessSpec),
    ) -> Result<()> {
        let mut spec = ProcessSpec::new(["app"]);
        change(&mut spec);
        spec.validate().map_err(|error| self.error(span, error.to_string()))
    }

    /// An object of texts, as environments are written.
    pub(crate) fn env(self, it: &Attribute) -> Result<BTreeMap<String, String>> {
        let key = it.key.as_str();
        let Some(object) = it.value.as_object() else {
            let message = format!("`{key}` must be an object: {{ NAME = \"value\" }}");
            return Err(self.error(it.value.span(), message));
        };
        let mut env = BTreeMap::new();
        for (name, value) in object {
            let name = match name {
                ObjectKey::Ident(ident) => ident.as_str().to_owned(),
                ObjectKey::Expression(expression) => self.string(expression, key)?,
            };
            env.insert(name, self.string(value.expr(), key)?);
        }
        model::validate_env(&env)
            .map_err(|error| self.error(it.value.span(), error.to_string()))?;
        Ok(env)
    }

    /// The environment of processes, without what the platform sets itself.
    pub(crate) fn process_env(self, it: &Attribute) -> Result<BTreeMap<String, String>> {
        let env = self.env(it)?;
        match env.keys().find(|name| model::PLATFORM_ENV.contains(&name.as_str())) {
            None => Ok(env),
            Some(name) => {
                let message = format!("`{name}` is set by the platform itself: leave it out");
                Err(self.error(it.value.span(), message))
            }
        }
    }
}

/// Something in a body.
#[derive(Clone, Copy)]
pub(crate) enum Item<'a> {
    Attribute(&'a Attribute),
    Block(&'a Block),
}
