<%@ page contentType="text/plain; charset=utf-8" session="false" trimDirectiveWhitespaces="true" %>
Tomcat <%= application.getServerInfo() %> pod <%= System.getenv("HOSTNAME") %>
