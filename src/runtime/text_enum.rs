//! Enums whose variants have one fixed text each, the same in the database, in messages and in HTTP
//! responses.

/// Defines an enum whose variants have one fixed text each, with `as_str`, `ALL`, `Display` and
/// `FromStr`. JSON and its schema use the same texts.
macro_rules! text_enum {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }
    ) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize,
            serde::Deserialize,
        )]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// All variants, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The text of this variant.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::runtime::text_enum::UnknownText;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let known = || Self::ALL.iter().copied();
                let found = known().find(|one| one.as_str() == text);
                found.ok_or_else(|| {
                    let known = known().map(Self::as_str);
                    $crate::runtime::text_enum::UnknownText::new(text, known)
                })
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let texts = Self::ALL.iter().map(|one| one.as_str());
                let schema = utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::Type::String);
                schema.enum_values(Some(texts)).into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::runtime::text_enum::UnknownText;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}
pub(crate) use text_enum;

/// The variant that a stored text names. `None` if there is no text, or if only a newer release
/// knows it.
pub fn known<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
    text?.parse().ok()
}

/// A text that names no variant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown value {text:?}, expected one of {expected}")]
pub struct UnknownText {
    text: String,
    expected: String,
}

impl UnknownText {
    pub(crate) fn new(text: &str, known: impl Iterator<Item = &'static str>) -> Self {
        Self { text: text.to_owned(), expected: known.collect::<Vec<_>>().join(", ") }
    }
}
