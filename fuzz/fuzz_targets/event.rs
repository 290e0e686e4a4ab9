//! Bodies of event messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    customerio_sync::event::property::parse_never_panics_and_is_deterministic(body);
});
