//! Requests of the admin API: query strings, bodies and headers.
#![no_main]

use customerio_sync::admin::property::{
    any_body_is_parsed_or_explained, any_query_is_parsed_or_explained, no_header_authenticates,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(query) = std::str::from_utf8(data) {
        any_query_is_parsed_or_explained(query);
    }
    any_body_is_parsed_or_explained(data);
    no_header_authenticates(data);
});
