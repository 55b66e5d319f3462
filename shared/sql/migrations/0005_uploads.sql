-- Files of recipients, kept until they are used or their time is over.
-- migrate:up
CREATE TABLE uploads (
  id text PRIMARY KEY,
  owner uuid NOT NULL REFERENCES users (id),
  filename text NOT NULL,
  format text NOT NULL,
  first_row integer NOT NULL,
  rows integer NOT NULL,
  columns text[] NOT NULL,
  phone_column text,
  default_region text,
  counts bytea NOT NULL,
  note text NOT NULL DEFAULT '',
  content bytea NOT NULL,
  created_ms bigint NOT NULL,
  expires_ms bigint NOT NULL,
  idempotency_key text,
  request_hash bytea
);
CREATE UNIQUE INDEX uploads_idempotency ON uploads (owner, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX uploads_expires ON uploads (expires_ms);

-- migrate:down
DROP TABLE uploads;
