//! Messages of RabbitMQ.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    customerio_sync::event::property::any_bytes_are_read_or_told(body);
});
