-- Actions on many failures or unprocessable messages, which any replica takes in steps: dismissals and
-- replays. The table is not bulk_retries, because the release before this one restarts the jobs of
-- every row there. That release neither reads nor writes this table.

CREATE TABLE bulk_actions (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind <> ''), -- a later release may add kinds, which this one leaves alone
    actor text NOT NULL CHECK (actor <> ''),
    selection jsonb NOT NULL CHECK (jsonb_typeof(selection) = 'object'),
    reason text, -- of a dismissal
    status text NOT NULL CHECK (status IN ('running', 'completed', 'cancelled')),
    eligible bigint NOT NULL CHECK (eligible >= 0), -- failures or messages that matched when it was created
    done bigint NOT NULL DEFAULT 0 CHECK (done >= 0), -- failures or messages that it resolved
    created_at timestamptz NOT NULL DEFAULT now(), -- later failures and messages are left alone
    next_step_at timestamptz NOT NULL DEFAULT now(), -- when a replica may take the next step
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cancelled_by text,
    CONSTRAINT bulk_actions_finished_has_time CHECK ((status = 'running') = (finished_at IS NULL)),
    CONSTRAINT bulk_actions_cancelled_by_somebody CHECK ((status = 'cancelled') = (cancelled_by IS NOT NULL))
);

CREATE INDEX bulk_actions_running ON bulk_actions (kind, created_at, id) WHERE status = 'running';
CREATE INDEX bulk_actions_recent ON bulk_actions (updated_at);
