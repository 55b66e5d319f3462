-- What people decide: the switch, where a number may write to, which key was used when.
-- migrate:up

-- One row, or none while nobody has ever switched.
CREATE TABLE switch (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  is_off boolean NOT NULL,
  reason text NOT NULL,
  by_whom text NOT NULL,
  since timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE senders ADD COLUMN allowed_regions text[] NOT NULL DEFAULT '{}',
  ADD COLUMN token_set_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN number_in_list bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE users ADD COLUMN number_in_list bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE api_keys ADD COLUMN last_used_at timestamptz,
  ADD COLUMN number_in_list bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE suppressions ADD COLUMN number_in_list bigint GENERATED ALWAYS AS IDENTITY;
CREATE INDEX suppressions_list ON suppressions (number_in_list) WHERE lifted_at IS NULL;
CREATE INDEX audit_log_actor ON audit_log (actor, number);
CREATE INDEX audit_log_action ON audit_log (action, number);

-- migrate:down
DROP INDEX audit_log_action, audit_log_actor, suppressions_list;
ALTER TABLE suppressions DROP COLUMN number_in_list;
ALTER TABLE api_keys DROP COLUMN number_in_list, DROP COLUMN last_used_at;
ALTER TABLE users DROP COLUMN number_in_list;
ALTER TABLE senders DROP COLUMN number_in_list, DROP COLUMN token_set_at,
  DROP COLUMN allowed_regions;
DROP TABLE switch;
