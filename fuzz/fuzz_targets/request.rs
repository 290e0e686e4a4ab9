//! Requests of the admin API: query strings, bodies and headers.
#![no_main]

use customerio_sync::admin::property::{any_body_is_read_or_told, any_query_is_read_or_told,
no_header_is_a_key};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(query) = std::str::from_utf8(data) {
        any_query_is_read_or_told(query);
    }
    any_body_is_read_or_told(data);
    no_header_is_a_key(data);
});
