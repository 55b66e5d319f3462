-- Take delivered entries from whoever held them.
-- Needs    claims
-- Put a delivered entry back under a new id, which fences whoever held it.
local function requeue(entry, more)
  local f = fields_of(entry)
  if f then
    call('XADD', P .. 'ready', '*', 'j', f.j, 'c', f.c, 'o', f.o, 'n', f.n, 's', f.s, 'g', f.g,
         'd', int(num(f.d) + more), 'x', f.x, 'r', f.r or '0')
  end
  call('XACK', P .. 'ready', 'workers', entry)
  call('XDEL', P .. 'ready', entry)
end

local function forget(worker)
  if #call('XPENDING', P .. 'ready', 'workers', '-', '+', 1, worker) > 0 then return false end
  call('XGROUP', 'DELCONSUMER', P .. 'ready', 'workers', worker)
  call('ZREM', P .. 'workers', worker)
  call('HDEL', P .. 'slots', worker)
  call('HDEL', P .. 'told', worker)
  return true
end
