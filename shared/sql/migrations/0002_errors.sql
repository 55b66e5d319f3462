-- What Graph's errors leave behind: how often a sender was parked, and who may not be written to.
-- migrate:up
ALTER TABLE senders ADD COLUMN parks smallint NOT NULL DEFAULT 0;

-- An entry is never deleted: lifted, it is a change like any other, which a copy must hear of.
CREATE TABLE suppressions (
  id text PRIMARY KEY,
  phone bigint NOT NULL,
  scope text NOT NULL CHECK (scope IN ('all', 'marketing')),
  reason text NOT NULL DEFAULT '',
  source text NOT NULL,
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  lifted_at timestamptz,
  change bigint NOT NULL
);
CREATE UNIQUE INDEX suppressions_open ON suppressions (phone, scope) WHERE lifted_at IS NULL;
CREATE UNIQUE INDEX suppressions_change ON suppressions (change);

-- migrate:down
