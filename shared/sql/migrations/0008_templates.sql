-- What Meta has of templates, as a worker has read it last, and whose message is marketing.
-- migrate:up

-- One row a WhatsApp business account: who asked for its list, when it was tried and read.
CREATE TABLE template_lists (
  waba_id text PRIMARY KEY,
  asked_at timestamptz,
  tried_at timestamptz,
  synced_at timestamptz,
  error text NOT NULL DEFAULT '',
  is_being_read boolean NOT NULL DEFAULT false,
  not_before timestamptz NOT NULL DEFAULT '-infinity',
  due_at timestamptz NOT NULL DEFAULT '-infinity'
);

CREATE TABLE templates (
  number bigint GENERATED ALWAYS AS IDENTITY,
  waba_id text NOT NULL,
  name text NOT NULL,
  language text NOT NULL,
  definition bytea NOT NULL,
  PRIMARY KEY (waba_id, name, language)
);
CREATE INDEX templates_list ON templates (waba_id, number);

ALTER TABLE bulk_jobs ADD COLUMN template_category text;

-- migrate:down
ALTER TABLE bulk_jobs DROP COLUMN template_category;
DROP TABLE templates;
DROP TABLE template_lists;
