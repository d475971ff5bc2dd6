-- What of a client's request reaches the API: Apache has no directive that keeps a list and drops the rest.
local listed = " host accept accept-encoding user-agent x-prometheus-scrape-timeout-seconds "
function keep_listed(r)
    for name, value in pairs(r:headers_in_table()) do
        r.headers_in[name] = listed:find(" " .. name:lower() .. " ", 1, true) and value or nil
    end
    return apache2.DECLINED
end
