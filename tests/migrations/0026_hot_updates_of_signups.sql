-- No column of a signup that the completion of a job changes is in an index.
SELECT assert_not_indexed('signups', ARRAY[
    'customerio_synced', 'customerio_synced_at', 'customerio_contact_id', 'updated_at'
]);
