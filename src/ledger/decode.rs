//! Enums with fixed texts, as values of PostgreSQL's type `text`.

use std::convert::Infallible;

use sqlx::{
    Decode, Postgres, Type,
    error::BoxDynError,
    postgres::{PgTypeInfo, PgValueRef},
    types::Json,
};

use super::{bulk::BulkStatus, bulk_action::BulkKind, integrity::Drift, selection::Selection};
use crate::job::{Claimant, ErrorType, MessageKind, Reason, Status, SyncPhase};

/// Reads a type from a column of type `text` by its own parser. A text that it does not know is a
/// decoding error.
macro_rules! decode_text {
    ($($type:ty: $parse:expr;)+) => {$(
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                <str as Type<Postgres>>::type_info()
            }

            fn compatible(found: &PgTypeInfo) -> bool {
                <str as Type<Postgres>>::compatible(found)
            }
        }

        impl<'r> Decode<'r, Postgres> for $type {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                Ok($parse(<&str as Decode<'r, Postgres>>::decode(value)?)?)
            }
        }
    )+};
}

decode_text! {
    BulkKind: str::parse::<BulkKind>;
    BulkStatus: str::parse::<BulkStatus>;
    Claimant: |text| Ok::<_, Infallible>(Claimant::parse(text));
    Drift: str::parse::<Drift>;
    ErrorType: str::parse::<ErrorType>;
    MessageKind: str::parse::<MessageKind>;
    Reason: str::parse::<Reason>;
    Status: str::parse::<Status>;
    SyncPhase: str::parse::<SyncPhase>;
}

/// A selection is stored as JSON.
impl Type<Postgres> for Selection {
    fn type_info() -> PgTypeInfo {
        <Json<Self> as Type<Postgres>>::type_info()
    }

    fn compatible(found: &PgTypeInfo) -> bool {
        <Json<Self> as Type<Postgres>>::compatible(found)
    }
}

impl<'r> Decode<'r, Postgres> for Selection {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(<Json<Self> as Decode<'r, Postgres>>::decode(value)?.0)
    }
}
